_base_ = "../cfg_coco_object.py"

model = dict(
    method="SCLIP",
    vocabulary="{{ fileDirname }}/cls_coco_object.txt",
    short_side=336,
    crop=224,
    stride=112,
    logit_scale=50.0,
    threshold=0.1,
)

benchmark = dict(
    names="7387645e07a0dbb4fe9af5f6621ce0972da02c8828ddc2fad1947adc1f5eccae",
    renamed={"background": "sky"},
    protocol="sclip",
    published={"_delete_": True, "ViT-B-16": dict(SCLIP=33.52, CLIP=8.1, MaskCLIP=20.6, GEM=31.1)},
    source=dict(
        SCLIP="SCLIP authors' README, without PAMR",
        CLIP="third-party table of the SCLIP protocol",
        MaskCLIP="third-party table of the SCLIP protocol",
        GEM="third-party table of the SCLIP protocol",
    ),
)
