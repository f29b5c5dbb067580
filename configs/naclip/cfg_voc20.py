_base_ = "../cfg_voc20.py"

model = dict(
    method="NACLIP",
    vocabulary="{{ fileDirname }}/../sclip/cls_voc20.txt",
    short_side=336,
    crop=0,
    two_steps=True,
    logit_scale=40.0,
)

benchmark = dict(
    names="03f221c4e407543de8621c094194d5f407c0feafd516590bbacdd52305b2867e",
    protocol="naclip",
    published={"_delete_": True, "ViT-B-16": {"NACLIP": 79.7, "NACLIP+PAMR": 83.03}},
    source={
        "NACLIP": "NACLIP paper (WACV 2025), without PAMR",
        "NACLIP+PAMR": "NACLIP authors' README",
    },
)
