_base_ = "../cfg_coco_stuff164k.py"

model = dict(method="Trident", crop=336, logit_scale=40.0)

benchmark = dict(
    protocol="trident",
    published={"_delete_": True, "ViT-B-16": {"Trident+SAM:coarse_threshold=0.05": 28.3}},
    source={"Trident+SAM:coarse_threshold=0.05": "Trident paper (ICCV 2025), refined by SAM"},
)
