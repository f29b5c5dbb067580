_base_ = "../cfg_coco_object.py"

model = dict(
    method="Trident",
    vocabulary="{{ fileDirname }}/../proxyclip/cls_coco_object.txt",
    crop=336,
    logit_scale=40.0,
    threshold=0.25,
)

benchmark = dict(
    protocol="trident",
    names="f642995d02bc360ab4babb440e970b952c11c4ad9a69e7bc787c64b62fa7f142",
    renamed={"background": "sky"},
    published={"_delete_": True, "ViT-B-16": {"Trident+SAM:coarse_threshold=0.25": 41.1}},
    source={"Trident+SAM:coarse_threshold=0.25": "Trident paper (ICCV 2025), refined by SAM"},
)
