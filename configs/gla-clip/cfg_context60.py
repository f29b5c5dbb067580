_base_ = "../cfg_context60.py"

model = dict(method="GLA-CLIP", short_side=336, crop=224, stride=112, logit_scale=40.0, threshold=0.1)

benchmark = dict(
    protocol="gla-clip",
    published={"_delete_": True, "ViT-B-16": {"GLA-CLIP": 36.1}},
    source={"GLA-CLIP": "third-party table"},
)
