_base_ = "../cfg_coco_object.py"

model = dict(
    method="ProxyCLIP",
    vocabulary="{{ fileDirname }}/cls_coco_object.txt",
    short_side=336,
    crop=336,
    stride=112,
    logit_scale=40.0,
    threshold=0.25,
)

benchmark = dict(
    names="f642995d02bc360ab4babb440e970b952c11c4ad9a69e7bc787c64b62fa7f142",
    renamed={"background": "sky"},
    protocol="proxyclip",
    published={"_delete_": True, "ViT-B-16": {"ProxyCLIP": 37.5, "ProxyCLIP:vfm=dino_vitb16": 36.2}},
    source={
        "ProxyCLIP": "ProxyCLIP paper (ECCV 2024)",
        "ProxyCLIP:vfm=dino_vitb16": "third-party table (RF-CLIP, AAAI 2026)",
    },
)
