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
    names="03015d4d2e1c0f0f86c164c8175285655eab8eaf931168fd06f5cfa5ae5796ce",
    renamed={"background": "sky"},
    protocol="naclip",
    published={"_delete_": True, "ViT-B-16": {"NACLIP": 58.9, "NACLIP+PAMR": 64.07}},
    source={
        "NACLIP": "NACLIP paper (WACV 2025), without PAMR",
        "NACLIP+PAMR": "NACLIP authors' README",
    },
)
