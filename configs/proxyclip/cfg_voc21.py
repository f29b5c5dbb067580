_base_ = "../cfg_voc21.py"

model = dict(
    method="ProxyCLIP",
    vocabulary="{{ fileDirname }}/cls_voc21.txt",
    short_side=336,
    crop=336,
    stride=112,
    logit_scale=40.0,
    threshold=0.2,
)

benchmark = dict(
    names="0e8452c7dce405256c1c0bdab2071f6f47f3f325d3f5a42c6d0a4ba67cb78920",
    renamed={"background": "sky"},
    protocol="proxyclip",
    published={"_delete_": True, "ViT-B-16": {"ProxyCLIP": 61.3, "ProxyCLIP:vfm=dino_vitb16": 59.1}},
    source={
        "ProxyCLIP": "ProxyCLIP paper (ECCV 2024)",
        "ProxyCLIP:vfm=dino_vitb16": "third-party table (RF-CLIP, AAAI 2026)",
    },
)
