_base_ = "../cfg_voc20.py"

method = "ResCLIP:confidence=0.1,rcs_lambda=0.6,sfr_lambda=0.6"

model = dict(
    method=method,
    vocabulary="{{ fileDirname }}/../sclip/cls_voc20.txt",
    short_side=336,
    crop=0,
    two_steps=True,
    logit_scale=40.0,
)

benchmark = dict(
    protocol="resclip",
    names="03f221c4e407543de8621c094194d5f407c0feafd516590bbacdd52305b2867e",
    published={"_delete_": True, "ViT-B-16": {method: 86.0}},
    source={method: "ResCLIP paper (CVPR 2025), on NACLIP"},
)
