_base_ = "../cfg_coco_stuff164k.py"

model = dict(method="SCLIP", crop=224, stride=112, logit_scale=40.0)

benchmark = dict(
    protocol="sclip",
    published={"_delete_": True, "ViT-B-16": dict(SCLIP=22.77, CLIP=5.7, MaskCLIP=16.7, GEM=23.7)},
    source=dict(
        SCLIP="SCLIP authors' README, without PAMR",
        CLIP="third-party table of the SCLIP protocol",
        MaskCLIP="third-party table of the SCLIP protocol",
        GEM="third-party table of the SCLIP protocol",
    ),
)
