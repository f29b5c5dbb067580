_base_ = "../cfg_ade20k.py"

model = dict(method="ProxyCLIP", crop=336, stride=112, logit_scale=40.0)

benchmark = dict(
    protocol="proxyclip",
    published={"_delete_": True, "ViT-B-16": {"ProxyCLIP": 20.2, "ProxyCLIP:vfm=dino_vitb16": 19.6}},
    source={
        "ProxyCLIP": "ProxyCLIP paper (ECCV 2024)",
        "ProxyCLIP:vfm=dino_vitb16": "third-party table (RF-CLIP, AAAI 2026)",
    },
)
