_base_ = "../cfg_city_scapes.py"

model = dict(method="LPOSS", pretrained="laion2b_s34b_b88k", stride=112)

benchmark = dict(
    protocol="lposs",
    published={"_delete_": True, "ViT-B-16 laion2b_s34b_b88k": {"LPOSS": 37.3}},
    source={"LPOSS": "third-party table (PEARL, CVPR 2026)"},
)
