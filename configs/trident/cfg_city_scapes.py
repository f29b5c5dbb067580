_base_ = "../cfg_city_scapes.py"

model = dict(method="Trident:cos_factor=3,keep_negative=False,halves=True", short_side=688, crop=336, logit_scale=40.0)

benchmark = dict(
    protocol="trident",
    published={"_delete_": True, "ViT-B-16": {"Trident:cos_factor=3,keep_negative=False,halves=True+SAM": 42.9}},
    source={"Trident:cos_factor=3,keep_negative=False,halves=True+SAM": "Trident paper (ICCV 2025), refined by SAM"},
)
