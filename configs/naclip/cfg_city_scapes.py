_base_ = "../cfg_city_scapes.py"
_base_.test_dataloader.dataset.pipeline[1].scale = (2048, 560)

model = dict(method="NACLIP", stride=112, temperature=40.0)

benchmark = dict(
    protocol="naclip",
    published={"_delete_": True, "ViT-B-16": {"NACLIP": 35.5, "NACLIP+PAMR": 38.27}},
    source={
        "NACLIP": "NACLIP paper (WACV 2025), without PAMR",
        "NACLIP+PAMR": "NACLIP authors' README",
    },
)
