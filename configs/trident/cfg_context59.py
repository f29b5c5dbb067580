_base_ = "../cfg_context59.py"

model = dict(method="Trident", short_side=576, crop=336, logit_scale=40.0)

benchmark = dict(
    protocol="trident",
    published={"_delete_": True, "ViT-B-16": {"Trident+SAM:coarse_threshold=0.15": 42.2}},
    source={"Trident+SAM:coarse_threshold=0.15": "Trident paper (ICCV 2025), refined by SAM"},
)
