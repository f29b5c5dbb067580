_base_ = "../cfg_coco_object.py"

model = dict(
    method="SC-CLIP",
    vocabulary="{{ fileDirname }}/../sclip/cls_coco_object.txt",
    short_side=336,
    crop=224,
    stride=112,
    logit_scale=55.0,
    threshold=0.35,
)

benchmark = dict(
    protocol="sc-clip",
    published={"_delete_": True, "ViT-B-16": {"SC-CLIP": 37.7}},
    source={"SC-CLIP": "SC-CLIP paper (TIP 2025)"},
)
