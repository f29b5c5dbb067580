_base_ = "../cfg_coco_stuff164k.py"
_base_.test_dataloader.dataset.pipeline[1].scale = (2048, 336)

model = dict(method="NACLIP", crop=224, stride=112, temperature=40.0)

benchmark = dict(
    protocol="naclip",
    published={"_delete_": True, "ViT-B-16": {"NACLIP": 23.3, "NACLIP+PAMR": 25.69}},
    source={
        "NACLIP": "NACLIP paper (WACV 2025), without PAMR",
        "NACLIP+PAMR": "NACLIP authors' README",
    },
)
