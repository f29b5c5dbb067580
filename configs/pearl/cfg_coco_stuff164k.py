_base_ = "../cfg_coco_stuff164k.py"

model = dict(method="PEARL+TLP", short_side=336, crop=224, stride=112, logit_scale=40.0)

benchmark = dict(
    protocol="pearl",
    published={"_delete_": True, "ViT-B-16": {"PEARL+TLP": 26.3}},
    source={"PEARL+TLP": "PEARL paper (CVPR 2026)"},
)
