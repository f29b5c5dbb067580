_base_ = "../cfg_voc21.py"
_base_.test_dataloader.dataset.pipeline[1].scale = (2048, 336)

model = dict(
    method="SCLIP",
    vocabulary="{{ fileDirname }}/cls_voc21.txt",
    crop=224,
    stride=112,
    temperature=65.0,
    threshold=0.1,
    area_threshold=0.1,
)

benchmark = dict(
    protocol="sclip",
    published={"_delete_": True, "ViT-B-16": dict(SCLIP=59.63, CLIP=18.8)},
    source=dict(
        SCLIP="SCLIP authors' README, without PAMR",
        CLIP="third-party table of the SCLIP protocol",
    ),
)
