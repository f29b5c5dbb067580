_base_ = "../cfg_city_scapes.py"

model = dict(method="SC-CLIP", short_side=560, stride=112, logit_scale=40.0)

benchmark = dict(
    protocol="sc-clip",
    published={"_delete_": True, "ViT-B-16": {"SC-CLIP": 41.0}},
    source={"SC-CLIP": "SC-CLIP paper (TIP 2025)"},
)
