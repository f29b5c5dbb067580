_base_ = "../cfg_ade20k.py"

model = dict(method="LPOSS", pretrained="laion2b_s34b_b88k", crop=224, stride=112)

benchmark = dict(
    protocol="lposs",
    published={"_delete_": True, "ViT-B-16 laion2b_s34b_b88k": {"LPOSS": 21.8}},
    source={"LPOSS": "third-party table (PEARL, CVPR 2026)"},
)
