_base_ = "../cfg_ade20k.py"
_base_.test_dataloader.dataset.pipeline[1].scale = (2048, 336)

model = dict(method="NACLIP", crop=224, stride=112, temperature=40.0)

benchmark = dict(
    protocol="naclip",
    published={"_delete_": True, "ViT-B-16": {"NACLIP": 17.4, "NACLIP+PAMR": 19.05}},
    source={
        "NACLIP": "NACLIP paper (WACV 2025), without PAMR",
        "NACLIP+PAMR": "NACLIP authors' README",
    },
)
