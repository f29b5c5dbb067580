_base_ = "../cfg_voc21.py"

method = "ResCLIP:confidence=0.5,sfr_tau=2.2"

model = dict(
    method=method,
    vocabulary="{{ fileDirname }}/../sclip/cls_voc21.txt",
    short_side=336,
    crop=0,
    two_steps=True,
    logit_scale=40.0,
    threshold=0.1,
)

benchmark = dict(
    protocol="resclip",
    names="03015d4d2e1c0f0f86c164c8175285655eab8eaf931168fd06f5cfa5ae5796ce",
    renamed={"background": "sky"},
    published={"_delete_": True, "ViT-B-16": {method: 61.1}},
    source={method: "ResCLIP paper (CVPR 2025), on NACLIP"},
)
