_base_ = "../cfg_context59.py"

model = dict(method="ProxyCLIP", short_side=336, crop=336, stride=112, logit_scale=40.0)

benchmark = dict(
    protocol="proxyclip",
    published={"_delete_": True, "ViT-B-16": {"ProxyCLIP": 39.1, "ProxyCLIP:vfm=dino_vitb16": 38.8}},
    source={
        "ProxyCLIP": "ProxyCLIP paper (ECCV 2024)",
        "ProxyCLIP:vfm=dino_vitb16": "third-party table (RF-CLIP, AAAI 2026)",
    },
)
