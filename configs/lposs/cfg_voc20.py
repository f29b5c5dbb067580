_base_ = "../cfg_voc20.py"

model = dict(
    method="LPOSS",
    pretrained="laion2b_s34b_b88k",
    vocabulary="{{ fileDirname }}/../sclip/cls_voc20.txt",
    crop=224,
    stride=112,
)

benchmark = dict(
    protocol="lposs",
    names="03f221c4e407543de8621c094194d5f407c0feafd516590bbacdd52305b2867e",
    published={"_delete_": True, "ViT-B-16 laion2b_s34b_b88k": {"LPOSS": 78.8}},
    source={"LPOSS": "third-party table (PEARL, CVPR 2026)"},
)
