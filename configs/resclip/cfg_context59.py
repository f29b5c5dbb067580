_base_ = "../cfg_context59.py"

method = "ResCLIP:rcs_lambda=0.4,sfr_tau=1.8"

model = dict(method=method, short_side=336, crop=224, stride=112, logit_scale=40.0)

benchmark = dict(
    protocol="resclip",
    published={"_delete_": True, "ViT-B-16": {method: 36.8}},
    source={method: "ResCLIP paper (CVPR 2025), on NACLIP"},
)
