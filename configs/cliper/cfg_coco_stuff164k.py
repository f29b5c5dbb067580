_base_ = "../cfg_coco_stuff164k.py"

# ViT-L-14: --backbone ViT-L-14 --method CLIPer:select=-2,attention_threshold=0.2,score_threshold=0.2,words=background \
#   --cfg-options model.logit_scale=50 model.threshold=0.2 model.templates=imagenet80
method = "CLIPer:attention_threshold=0.2,score_threshold=0.1,words=background"

model = dict(
    method=method,
    templates="car15",
    short_side=336,
    resize="pil",
    crop=0,
    logit_scale=50.0,
    threshold=0.1,
)

benchmark = dict(
    protocol="cliper",
    published={"_delete_": True, "ViT-B-16": {method: 25.4, method + ",refine=sd21": 27.6}},
    source={
        method: "CLIPer authors' README, without diffusion",
        method + ",refine=sd21": "CLIPer authors' README, with diffusion",
    },
)
