_base_ = "../cfg_coco_object.py"
_base_.test_dataloader.dataset.pipeline[1].scale = (2048, 336)

model = dict(
    method="NACLIP",
    vocabulary="{{ fileDirname }}/../sclip/cls_coco_object.txt",
    crop=224,
    stride=112,
    temperature=40.0,
    threshold=0.1,
)

benchmark = dict(
    protocol="naclip",
    published={"_delete_": True, "ViT-B-16": {"NACLIP": 33.2, "NACLIP+PAMR": 36.19}},
    source={
        "NACLIP": "NACLIP paper (WACV 2025), without PAMR",
        "NACLIP+PAMR": "NACLIP authors' README",
    },
)
