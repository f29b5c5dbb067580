_base_ = "../cfg_context60.py"
_base_.test_dataloader.dataset.pipeline[1].scale = (2048, 336)

model = dict(method="SCLIP", crop=224, stride=112, temperature=50.0, threshold=0.1)

benchmark = dict(
    protocol="sclip",
    published={"_delete_": True, "ViT-B-16": dict(SCLIP=31.74, CLIP=9.9)},
    source=dict(
        SCLIP="SCLIP authors' README, without PAMR",
        CLIP="third-party table of the SCLIP protocol",
    ),
)
