_base_ = "../cfg_context60.py"

model = dict(method="NACLIP", short_side=336, crop=224, stride=112, logit_scale=40.0, threshold=0.1)

benchmark = dict(
    protocol="naclip",
    published={"_delete_": True, "ViT-B-16": {"NACLIP": 32.2, "NACLIP+PAMR": 34.99}},
    source={
        "NACLIP": "NACLIP paper (WACV 2025), without PAMR",
        "NACLIP+PAMR": "NACLIP authors' README",
    },
)
