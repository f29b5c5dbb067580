_base_ = "../cfg_voc21.py"

model = dict(
    method="GLA-CLIP",
    vocabulary="{{ fileDirname }}/../sclip/cls_voc21.txt",
    short_side=336,
    crop=224,
    stride=112,
    logit_scale=40.0,
    threshold=0.1,
)

benchmark = dict(
    protocol="gla-clip",
    names="03015d4d2e1c0f0f86c164c8175285655eab8eaf931168fd06f5cfa5ae5796ce",
    renamed={"background": "sky"},
    published={"_delete_": True, "ViT-B-16": {"GLA-CLIP": 66.3}},
    source={"GLA-CLIP": "third-party table"},
)
