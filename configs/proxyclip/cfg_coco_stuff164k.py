_base_ = "../cfg_coco_stuff164k.py"

model = dict(method="ProxyCLIP", short_side=336, crop=336, stride=112, logit_scale=40.0)

benchmark = dict(
    protocol="proxyclip",
    published={"_delete_": True, "ViT-B-16": {"ProxyCLIP": 26.5, "ProxyCLIP:vfm=dino_vitb16": 26.2}},
    source={
        "ProxyCLIP": "ProxyCLIP paper (ECCV 2024)",
        "ProxyCLIP:vfm=dino_vitb16": "third-party table (RF-CLIP, AAAI 2026)",
    },
)
