_base_ = "../cfg_context60.py"
_base_.test_dataloader.dataset.pipeline[1].scale = (2048, 336)

model = dict(method="NACLIP", crop=224, stride=112, temperature=40.0, threshold=0.1)

benchmark = dict(
    protocol="naclip",
    published={"_delete_": True, "ViT-B-16": {"NACLIP": 32.2, "NACLIP+PAMR": 34.99}},
    source={
        "NACLIP": "NACLIP paper (WACV 2025), without PAMR",
        "NACLIP+PAMR": "NACLIP authors' README",
    },
)
