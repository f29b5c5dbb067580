_base_ = "../cfg_voc21.py"
_base_.test_dataloader.dataset.pipeline[1].scale = (2048, 336)

model = dict(
    method="NACLIP",
    vocabulary="{{ fileDirname }}/../sclip/cls_voc21.txt",
    crop=0,
    temperature=40.0,
    threshold=0.1,
)

benchmark = dict(
    protocol="naclip",
    published={"_delete_": True, "ViT-B-16": {"NACLIP": 58.9, "NACLIP+PAMR": 64.07}},
    source={
        "NACLIP": "NACLIP paper (WACV 2025), without PAMR",
        "NACLIP+PAMR": "NACLIP authors' README",
    },
)
