_base_ = "../cfg_voc20.py"

model = dict(
    method="PEARL+TLP",
    vocabulary="{{ fileDirname }}/../sclip/cls_voc20.txt",
    short_side=336,
    crop=0,
    two_steps=True,
    logit_scale=40.0,
)

benchmark = dict(
    protocol="pearl",
    names="03f221c4e407543de8621c094194d5f407c0feafd516590bbacdd52305b2867e",
    published={"_delete_": True, "ViT-B-16": {"PEARL+TLP": 86.9}},
    source={"PEARL+TLP": "PEARL paper (CVPR 2026)"},
)
