_base_ = "../cfg_city_scapes.py"

model = dict(method="SCLIP", short_side=560, stride=112, logit_scale=40.0)

benchmark = dict(
    protocol="sclip",
    published={"_delete_": True, "ViT-B-16": dict(SCLIP=32.34, CLIP=6.5, MaskCLIP=24.9, GEM=30.8)},
    source=dict(
        SCLIP="SCLIP authors' README, without PAMR",
        CLIP="third-party table of the SCLIP protocol",
        MaskCLIP="third-party table of the SCLIP protocol",
        GEM="third-party table of the SCLIP protocol",
    ),
)
