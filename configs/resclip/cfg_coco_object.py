_base_ = "../cfg_coco_object.py"

method = "ResCLIP:confidence=0.11,rcs_lambda=0.4,sfr_tau=1.8"

model = dict(
    method=method,
    vocabulary="{{ fileDirname }}/../sclip/cls_coco_object.txt",
    short_side=336,
    crop=224,
    stride=112,
    logit_scale=40.0,
    threshold=0.1,
)

benchmark = dict(
    protocol="resclip",
    names="7387645e07a0dbb4fe9af5f6621ce0972da02c8828ddc2fad1947adc1f5eccae",
    renamed={"background": "sky"},
    published={"_delete_": True, "ViT-B-16": {method: 35.0}},
    source={method: "ResCLIP paper (CVPR 2025), on NACLIP"},
)
