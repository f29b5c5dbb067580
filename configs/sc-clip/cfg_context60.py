_base_ = "../cfg_context60.py"

model = dict(method="SC-CLIP", short_side=336, crop=224, stride=112, logit_scale=40.0)

benchmark = dict(
    protocol="sc-clip",
    published={"_delete_": True, "ViT-B-16": {"SC-CLIP": 36.8}},
    source={"SC-CLIP": "SC-CLIP paper (TIP 2025)"},
)
