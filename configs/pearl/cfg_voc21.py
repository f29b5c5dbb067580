_base_ = "../cfg_voc21.py"

model = dict(
    method="PEARL+TLP",
    vocabulary="{{ fileDirname }}/../sclip/cls_voc21.txt",
    short_side=336,
    crop=0,
    two_steps=True,
    logit_scale=40.0,
    threshold=0.1,
)

benchmark = dict(
    protocol="pearl",
    names="03015d4d2e1c0f0f86c164c8175285655eab8eaf931168fd06f5cfa5ae5796ce",
    renamed={"background": "sky"},
    published={"_delete_": True, "ViT-B-16": {"PEARL+TLP": 64.1}},
    source={"PEARL+TLP": "PEARL paper (CVPR 2026)"},
)
