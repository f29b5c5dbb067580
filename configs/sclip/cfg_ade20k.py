_base_ = "../cfg_ade20k.py"
_base_.test_dataloader.dataset.pipeline[1].scale = (2048, 336)

model = dict(method="SCLIP", crop=224, stride=112, temperature=40.0)

benchmark = dict(
    protocol="sclip",
    published={"_delete_": True, "ViT-B-16": dict(SCLIP=16.45, CLIP=3.1)},
    source=dict(
        SCLIP="SCLIP authors' README, without PAMR",
        CLIP="third-party table of the SCLIP protocol",
    ),
)
