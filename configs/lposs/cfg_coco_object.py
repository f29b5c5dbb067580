_base_ = "../cfg_coco_object.py"

model = dict(
    method="LPOSS",
    pretrained="laion2b_s34b_b88k",
    vocabulary="{{ fileDirname }}/../sclip/cls_coco_object.txt",
    crop=224,
    stride=112,
    threshold=0.0,
)

benchmark = dict(
    protocol="lposs",
    names="7387645e07a0dbb4fe9af5f6621ce0972da02c8828ddc2fad1947adc1f5eccae",
    renamed={"background": "sky"},
    published={"_delete_": True, "ViT-B-16 laion2b_s34b_b88k": {"LPOSS": 33.4}},
    source={"LPOSS": "third-party table (PEARL, CVPR 2026)"},
)
