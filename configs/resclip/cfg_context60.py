_base_ = "../cfg_context60.py"

method = "ResCLIP:confidence=0.3,sfr_tau=1.8"

model = dict(method=method, short_side=336, crop=224, stride=112, logit_scale=40.0, threshold=0.1)

benchmark = dict(
    protocol="resclip",
    published={"_delete_": True, "ViT-B-16": {method: 33.5}},
    source={method: "ResCLIP paper (CVPR 2025), on NACLIP"},
)
