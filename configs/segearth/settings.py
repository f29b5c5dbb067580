# What the configs of SegEarth-OV's protocol share: `_base_.segearth` in each of them.

segearth = dict(
    model=dict(long_side=448, crop=224, stride=112),
    source=dict(
        CLIP="third-party table (notes on ReAttnCLIP, CVPR 2026)",
        MaskCLIP="third-party table (notes on ReAttnCLIP, CVPR 2026)",
        SCLIP="third-party table (notes on ReAttnCLIP, CVPR 2026)",
        ClearCLIP="third-party table (notes on ReAttnCLIP, CVPR 2026)",
        GEM="third-party table (README of QwSAM3)",
    ),
)
