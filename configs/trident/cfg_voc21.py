_base_ = "../cfg_voc21.py"

model = dict(
    method="Trident",
    vocabulary="{{ fileDirname }}/../proxyclip/cls_voc21.txt",
    crop=336,
    logit_scale=40.0,
    threshold=0.2,
)

benchmark = dict(
    protocol="trident",
    published={"_delete_": True, "ViT-B-16": {"Trident+SAM:coarse_threshold=0.2": 67.1}},
    source={"Trident+SAM:coarse_threshold=0.2": "Trident paper (ICCV 2025), refined by SAM"},
)
