_base_ = "../cfg_coco_stuff164k.py"
_base_.test_dataloader.dataset.pipeline[1].scale = (2048, 336)

model = dict(method="ProxyCLIP", crop=336, stride=112, temperature=40.0)

benchmark = dict(
    protocol="proxyclip",
    published={"_delete_": True, "ViT-B-16": {"ProxyCLIP": 26.5, "ProxyCLIP:vfm=dino_vitb16": 26.2}},
    source={
        "ProxyCLIP": "ProxyCLIP paper (ECCV 2024)",
        "ProxyCLIP:vfm=dino_vitb16": "third-party table (RF-CLIP, AAAI 2026)",
    },
)
