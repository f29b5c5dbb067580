_base_ = "../cfg_coco_object.py"

model = dict(
    method="GLA-CLIP",
    vocabulary="{{ fileDirname }}/../sclip/cls_coco_object.txt",
    short_side=336,
    crop=224,
    stride=112,
    logit_scale=40.0,
    threshold=0.1,
)

benchmark = dict(
    protocol="gla-clip",
    names="7387645e07a0dbb4fe9af5f6621ce0972da02c8828ddc2fad1947adc1f5eccae",
    renamed={"background": "sky"},
    published={"_delete_": True, "ViT-B-16": {"GLA-CLIP": 37.7}},
    source={"GLA-CLIP": "third-party table"},
)
