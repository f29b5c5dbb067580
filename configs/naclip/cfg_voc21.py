_base_ = "../cfg_voc21.py"

model = dict(
    method="NACLIP",
    vocabulary="{{ fileDirname }}/../sclip/cls_voc21.txt",
    short_side=336,
    crop=0,
    two_steps=True,
    logit_scale=40.0,
    threshold=0.1,
)

benchmark = dict(
    protocol="naclip",
    published={"_delete_": True, "ViT-B-16": {"NACLIP": 58.9, "NACLIP+PAMR": 64.07}},
    source={
        "NACLIP": "NACLIP paper (WACV 2025), without PAMR",
        "NACLIP+PAMR": "NACLIP authors' README",
    },
)
