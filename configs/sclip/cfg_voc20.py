_base_ = "../cfg_voc20.py"

model = dict(
    method="SCLIP",
    vocabulary="{{ fileDirname }}/cls_voc20.txt",
    short_side=336,
    crop=224,
    stride=112,
    logit_scale=40.0,
)

benchmark = dict(
    names="03f221c4e407543de8621c094194d5f407c0feafd516590bbacdd52305b2867e",
    protocol="sclip",
    published={"_delete_": True, "ViT-B-16": dict(SCLIP=81.54, CLIP=49.4, MaskCLIP=74.9, GEM=79.9)},
    source=dict(
        SCLIP="SCLIP authors' README, without PAMR",
        CLIP="third-party table of the SCLIP protocol",
        MaskCLIP="third-party table of the SCLIP protocol",
        GEM="third-party table of the SCLIP protocol",
    ),
)
