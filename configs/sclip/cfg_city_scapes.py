_base_ = "../cfg_city_scapes.py"
_base_.test_dataloader.dataset.pipeline[1].scale = (2048, 560)

model = dict(method="SCLIP", stride=112, temperature=40.0)

benchmark = dict(
    protocol="sclip",
    published={"_delete_": True, "ViT-B-16": dict(SCLIP=32.34, CLIP=6.5)},
    source=dict(
        SCLIP="SCLIP authors' README, without PAMR",
        CLIP="third-party table of the SCLIP protocol",
    ),
)
