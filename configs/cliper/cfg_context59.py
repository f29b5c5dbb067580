_base_ = "../cfg_context59.py"

# ViT-L-14: --backbone ViT-L-14 \
#   --method CLIPer:select=-2,attention_threshold=0.2,score_threshold=0.45,words=background \
#   --cfg-options model.logit_scale=100 model.threshold=0.45
method = "CLIPer:attention_threshold=0.2,score_threshold=0.3,window=224,words=background"

model = dict(
    method=method,
    vocabulary="{{ fileDirname }}/cls_context59.txt",
    templates="car15",
    short_side=336,
    resize="pil",
    crop=0,
    logit_scale=100.0,
    threshold=0.3,
)

benchmark = dict(
    names="bff90c8e04dda479c9dc9b58678b9bb7560b01a743e3b978152629d1a7f84ccb",
    renamed={"person": "person with cloth people human"},
    protocol="cliper",
    published={"_delete_": True, "ViT-B-16": {method: 39.6, method + ",refine=sd21": 42.4}},
    source={
        method: "CLIPer authors' README, sliding, without diffusion",
        method + ",refine=sd21": "CLIPer authors' README, sliding, with diffusion",
    },
)
