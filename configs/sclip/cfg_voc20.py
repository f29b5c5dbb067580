_base_ = "../cfg_voc20.py"

model = dict(
    method="SCLIP",
    vocabulary="{{ fileDirname }}/cls_voc20.txt",
    short_side=336,
    crop=224,
    stride=112,
    logit_scale=40.0,
)

benchmark = dict(
    protocol="sclip",
    published={"_delete_": True, "ViT-B-16": dict(SCLIP=81.54, CLIP=49.4)},
    source=dict(
        SCLIP="SCLIP authors' README, without PAMR",
        CLIP="third-party table of the SCLIP protocol",
    ),
)
