_base_ = "../cfg_city_scapes.py"

# ViT-L-14: --backbone ViT-L-14 --method CLIPer:attention_threshold=0.35,words=background \
#   --cfg-options model.logit_scale=100 model.threshold=0.0001 model.templates=car15 model.crop=448 model.stride=448 \
#   model.short_side=448
method = "CLIPer:attention_threshold=0.35,words=background"

model = dict(
    method=method,
    short_side=560,
    resize="pil",
    crop=560,  # the left and the right half, as the authors cut them
    stride=560,
    logit_scale=100.0,
    threshold=0.0001,
)

benchmark = dict(
    protocol="cliper",
    published={"_delete_": True, "ViT-B-16": {method: 35.9, method + ",refine=sd21": 37.0}},
    source={
        method: "CLIPer authors' README, without diffusion",
        method + ",refine=sd21": "CLIPer authors' README, with diffusion",
    },
)
