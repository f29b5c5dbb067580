_base_ = "../cfg_voc21.py"

model = dict(
    method="SCLIP",
    vocabulary="{{ fileDirname }}/cls_voc21.txt",
    short_side=336,
    crop=224,
    stride=112,
    logit_scale=65.0,
    threshold=0.1,
    area_threshold=0.1,
)

benchmark = dict(
    names="03015d4d2e1c0f0f86c164c8175285655eab8eaf931168fd06f5cfa5ae5796ce",
    renamed={"background": "sky"},
    protocol="sclip",
    published={"_delete_": True, "ViT-B-16": dict(SCLIP=59.63, CLIP=18.8, MaskCLIP=43.4, GEM=56.9)},
    source=dict(
        SCLIP="SCLIP authors' README, without PAMR",
        CLIP="third-party table of the SCLIP protocol",
        MaskCLIP="third-party table of the SCLIP protocol",
        GEM="third-party table of the SCLIP protocol",
    ),
)
