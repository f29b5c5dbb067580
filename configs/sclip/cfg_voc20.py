_base_ = "../cfg_voc20.py"
_base_.test_dataloader.dataset.pipeline[1].scale = (2048, 336)

model = dict(
    method="SCLIP",
    vocabulary="{{ fileDirname }}/cls_voc20.txt",
    crop=224,
    stride=112,
    temperature=40.0,
)

benchmark = dict(
    protocol="sclip",
    published={"_delete_": True, "ViT-B-16": dict(SCLIP=81.54, CLIP=49.4)},
    source=dict(
        SCLIP="SCLIP authors' README, without PAMR",
        CLIP="third-party table of the SCLIP protocol",
    ),
)
