_base_ = "../cfg_voc21.py"

model = dict(
    method="LPOSS",
    pretrained="laion2b_s34b_b88k",
    vocabulary="{{ fileDirname }}/../sclip/cls_voc21.txt",
    crop=224,
    stride=112,
    threshold=0.0,
)

benchmark = dict(
    protocol="lposs",
    names="03015d4d2e1c0f0f86c164c8175285655eab8eaf931168fd06f5cfa5ae5796ce",
    renamed={"background": "sky"},
    published={"_delete_": True, "ViT-B-16 laion2b_s34b_b88k": {"LPOSS": 61.1}},
    source={"LPOSS": "third-party table (PEARL, CVPR 2026)"},
)
