_base_ = "../cfg_context59.py"

model = dict(method="SCLIP", short_side=336, crop=224, stride=112, logit_scale=40.0)

benchmark = dict(
    protocol="sclip",
    published={"_delete_": True, "ViT-B-16": dict(SCLIP=34.46, CLIP=11.1, MaskCLIP=26.4, GEM=35.9)},
    source=dict(
        SCLIP="SCLIP authors' README, without PAMR",
        CLIP="third-party table of the SCLIP protocol",
        MaskCLIP="third-party table of the SCLIP protocol",
        GEM="third-party table of the SCLIP protocol",
    ),
)
