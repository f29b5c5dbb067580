_base_ = "../cfg_ade20k.py"

model = dict(method="Trident:keep_negative=False", short_side=576, crop=336, logit_scale=40.0)

benchmark = dict(
    protocol="trident",
    published={"_delete_": True, "ViT-B-16": {"Trident:keep_negative=False+SAM:coarse_threshold=0.05": 21.9}},
    source={"Trident:keep_negative=False+SAM:coarse_threshold=0.05": "Trident paper (ICCV 2025), refined by SAM"},
)
