_base_ = "../cfg_voc21.py"
_base_.test_dataloader.dataset.pipeline[1].scale = (2048, 336)

model = dict(
    method="ProxyCLIP",
    vocabulary="{{ fileDirname }}/cls_voc21.txt",
    crop=336,
    stride=112,
    temperature=40.0,
    threshold=0.2,
)

benchmark = dict(
    protocol="proxyclip",
    published={"_delete_": True, "ViT-B-16": {"ProxyCLIP": 61.3, "ProxyCLIP:vfm=dino_vitb16": 59.1}},
    source={
        "ProxyCLIP": "ProxyCLIP paper (ECCV 2024)",
        "ProxyCLIP:vfm=dino_vitb16": "third-party table (RF-CLIP, AAAI 2026)",
    },
)
