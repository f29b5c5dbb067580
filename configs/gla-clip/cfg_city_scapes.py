_base_ = "../cfg_city_scapes.py"

model = dict(method="GLA-CLIP", short_side=560, stride=112, logit_scale=40.0)

benchmark = dict(
    protocol="gla-clip",
    published={"_delete_": True, "ViT-B-16": {"GLA-CLIP": 40.8}},
    source={"GLA-CLIP": "third-party table"},
)
