_base_ = "../cfg_context60.py"

# ViT-L-14: --backbone ViT-L-14 --method CLIPer:background=True,select=-2,attention_threshold=0.2,score_threshold=0.3 \
#   --cfg-options model.logit_scale=50 model.threshold=0.3 model.templates=imagenet80
method = "CLIPer:background=True,attention_threshold=0.2,score_threshold=0.45,window=224"

model = dict(
    method=method,
    vocabulary="{{ fileDirname }}/cls_context60.txt",
    templates="car15",
    short_side=336,
    resize="pil",
    crop=0,
    logit_scale=100.0,
    threshold=0.45,
)

benchmark = dict(
    names="ce6b161032052268fe0f455787ce338ebb72888824f8b9e4acb0b140e70caf0d",
    renamed={"person": "person with cloth people human"},
    protocol="cliper",
    published={"_delete_": True, "ViT-B-16": {method: 35.7, method + ",refine=sd21": 38.3}},
    source={
        method: "CLIPer authors' README, sliding, without diffusion",
        method + ",refine=sd21": "CLIPer authors' README, sliding, with diffusion",
    },
)
