_base_ = "../cfg_context60.py"

model = dict(method="PEARL+TLP", short_side=336, crop=224, stride=112, logit_scale=40.0, threshold=0.1)

benchmark = dict(
    protocol="pearl",
    published={"_delete_": True, "ViT-B-16": {"PEARL+TLP": 35.1}},
    source={"PEARL+TLP": "PEARL paper (CVPR 2026)"},
)
