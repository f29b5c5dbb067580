_base_ = "../cfg_voc20.py"

model = dict(method="ProxyCLIP", short_side=336, crop=336, stride=112, logit_scale=40.0)

benchmark = dict(
    protocol="proxyclip",
    published={"_delete_": True, "ViT-B-16": {"ProxyCLIP": 80.3, "ProxyCLIP:vfm=dino_vitb16": 78.2}},
    source={
        "ProxyCLIP": "ProxyCLIP paper (ECCV 2024)",
        "ProxyCLIP:vfm=dino_vitb16": "third-party table (RF-CLIP, AAAI 2026)",
    },
)
