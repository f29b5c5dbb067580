_base_ = "../cfg_city_scapes.py"

model = dict(method="ProxyCLIP", stride=112, logit_scale=40.0)

benchmark = dict(
    protocol="proxyclip",
    published={"_delete_": True, "ViT-B-16": {"ProxyCLIP": 38.1, "ProxyCLIP:vfm=dino_vitb16": 38.1}},
    source={
        "ProxyCLIP": "ProxyCLIP paper (ECCV 2024)",
        "ProxyCLIP:vfm=dino_vitb16": "third-party table (RF-CLIP, AAAI 2026)",
    },
)
