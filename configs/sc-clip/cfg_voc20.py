_base_ = "../cfg_voc20.py"

model = dict(
    method="SC-CLIP",
    vocabulary="{{ fileDirname }}/../sclip/cls_voc20.txt",
    short_side=336,
    crop=224,
    stride=112,
    logit_scale=40.0,
)

benchmark = dict(
    protocol="sc-clip",
    names="03f221c4e407543de8621c094194d5f407c0feafd516590bbacdd52305b2867e",
    published={"_delete_": True, "ViT-B-16": {"SC-CLIP": 84.3}},
    source={"SC-CLIP": "SC-CLIP paper (TIP 2025)"},
)
