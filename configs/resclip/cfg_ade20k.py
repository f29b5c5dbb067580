_base_ = "../cfg_ade20k.py"

model = dict(method="ResCLIP", short_side=336, crop=224, stride=112, logit_scale=40.0)

benchmark = dict(
    protocol="resclip",
    published={"_delete_": True, "ViT-B-16": {"ResCLIP": 18.0}},
    source={"ResCLIP": "ResCLIP paper (CVPR 2025), on NACLIP"},
)
