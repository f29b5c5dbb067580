_base_ = "../cfg_context60.py"

model = dict(method="SCLIP", short_side=336, crop=224, stride=112, logit_scale=50.0, threshold=0.1)

benchmark = dict(
    protocol="sclip",
    published={"_delete_": True, "ViT-B-16": dict(SCLIP=31.74, CLIP=9.9, MaskCLIP=23.2, GEM=32.6)},
    source=dict(
        SCLIP="SCLIP authors' README, without PAMR",
        CLIP="third-party table of the SCLIP protocol",
        MaskCLIP="third-party table of the SCLIP protocol",
        GEM="third-party table of the SCLIP protocol",
    ),
)
