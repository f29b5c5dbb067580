_base_ = "../cfg_city_scapes.py"

method = "ResCLIP:confidence=0.1,rcs_lambda=0.2,sfr_lambda=0.6"

model = dict(method=method, short_side=560, stride=112, logit_scale=40.0)

benchmark = dict(
    protocol="resclip",
    published={"_delete_": True, "ViT-B-16": {method: 35.9}},
    source={method: "ResCLIP paper (CVPR 2025), on NACLIP"},
)
