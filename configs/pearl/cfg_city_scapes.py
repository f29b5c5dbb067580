_base_ = "../cfg_city_scapes.py"

method = "PEARL:attention=pearl0.3+TLP:grid=224"

model = dict(method=method, short_side=560, stride=112, logit_scale=40.0)

benchmark = dict(
    protocol="pearl",
    published={"_delete_": True, "ViT-B-16": {method: 37.6}},
    source={method: "PEARL paper (CVPR 2026)"},
)
