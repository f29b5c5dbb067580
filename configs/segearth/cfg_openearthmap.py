_base_ = "../remote_sensing/cfg_openearthmap.py"

model = dict(
    vocabulary="{{ fileDirname }}/cls_openearthmap.txt",
    long_side=448,
    crop=224,
    stride=112,
    threshold=0.1,
)

benchmark = dict(
    names="38854c87e1c0a7ddd61010958e615da5d1b769a2fd53d90df17d4770211c19d0",
    protocol="segearth",
    published={"ViT-B-16": dict(CLIP=12.0, MaskCLIP=25.1, SCLIP=29.3, ClearCLIP=31.0, GEM=33.9)},
    source=dict(
        CLIP="third-party table (notes on ReAttnCLIP, CVPR 2026)",
        MaskCLIP="third-party table (notes on ReAttnCLIP, CVPR 2026)",
        SCLIP="third-party table (notes on ReAttnCLIP, CVPR 2026)",
        ClearCLIP="third-party table (notes on ReAttnCLIP, CVPR 2026)",
        GEM="third-party table (README of QwSAM3)",
    ),
)
