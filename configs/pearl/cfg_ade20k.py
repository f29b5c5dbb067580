_base_ = "../cfg_ade20k.py"

method = "PEARL:attention=pearl0.3+TLP"

model = dict(method=method, short_side=336, crop=224, stride=112, logit_scale=40.0)

benchmark = dict(
    protocol="pearl",
    published={"_delete_": True, "ViT-B-16": {method: 19.4}},
    source={method: "PEARL paper (CVPR 2026)"},
)
