_base_ = "../cfg_coco_stuff164k.py"

model = dict(method="LPOSS", pretrained="laion2b_s34b_b88k", crop=224, stride=112)

benchmark = dict(
    protocol="lposs",
    published={"_delete_": True, "ViT-B-16 laion2b_s34b_b88k": {"LPOSS": 25.9}},
    source={"LPOSS": "third-party table (PEARL, CVPR 2026)"},
)
