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
    protocol="sclip",
    published={"_delete_": True, "ViT-B-16": dict(SCLIP=33.52, CLIP=8.1)},
    source=dict(
        SCLIP="SCLIP authors' README, without PAMR",
        CLIP="third-party table of the SCLIP protocol",
    ),
)
