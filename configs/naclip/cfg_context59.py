_base_ = "../cfg_context59.py"

model = dict(method="NACLIP", short_side=336, crop=224, stride=112, logit_scale=40.0)

benchmark = dict(
    protocol="naclip",
    published={"_delete_": True, "ViT-B-16": {"NACLIP": 35.2, "NACLIP+PAMR": 38.35}},
    source={
        "NACLIP": "NACLIP paper (WACV 2025), without PAMR",
        "NACLIP+PAMR": "NACLIP authors' README",
    },
)
