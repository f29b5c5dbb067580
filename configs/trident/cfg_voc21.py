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
    names="0e8452c7dce405256c1c0bdab2071f6f47f3f325d3f5a42c6d0a4ba67cb78920",
    renamed={"background": "sky"},
    published={"_delete_": True, "ViT-B-16": {"Trident+SAM:coarse_threshold=0.2": 67.1}},
    source={"Trident+SAM:coarse_threshold=0.2": "Trident paper (ICCV 2025), refined by SAM"},
)
