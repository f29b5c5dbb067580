_base_ = "../cfg_city_scapes.py"

model = dict(method="NACLIP", short_side=560, stride=112, logit_scale=40.0)

benchmark = dict(
    protocol="naclip",
    published={"_delete_": True, "ViT-B-16": {"NACLIP": 35.5, "NACLIP+PAMR": 38.27}},
    source={
        "NACLIP": "NACLIP paper (WACV 2025), without PAMR",
        "NACLIP+PAMR": "NACLIP authors' README",
    },
)
