_base_ = "../cfg_ade20k.py"

model = dict(method="NACLIP", short_side=336, crop=224, stride=112, logit_scale=40.0)

benchmark = dict(
    protocol="naclip",
    published={"_delete_": True, "ViT-B-16": {"NACLIP": 17.4, "NACLIP+PAMR": 19.05}},
    source={
        "NACLIP": "NACLIP paper (WACV 2025), without PAMR",
        "NACLIP+PAMR": "NACLIP authors' README",
    },
)
