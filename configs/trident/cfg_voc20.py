_base_ = "../cfg_voc20.py"

model = dict(method="Trident:cos_factor=0", short_side=336, crop=336, stride=112, logit_scale=40.0)

benchmark = dict(
    protocol="trident",
    published={"_delete_": True, "ViT-B-16": {"Trident:cos_factor=0+SAM:coarse_threshold=0.2": 84.5}},
    source={"Trident:cos_factor=0+SAM:coarse_threshold=0.2": "Trident paper (ICCV 2025), refined by SAM"},
)
