_base_ = "../cfg_voc20.py"

# ViT-L-14: --backbone ViT-L-14 --method CLIPer:attention_threshold=0.2,score_threshold=0.1,words=voc \
#   --cfg-options model.logit_scale=70 model.threshold=0.0001
method = "CLIPer:words=voc"

model = dict(
    method=method,
    vocabulary="{{ fileDirname }}/cls_voc20.txt",
    templates="car15",
    short_side=336,
    resize="pil",
    crop=0,
    logit_scale=100.0,
    threshold=0.001,
)

benchmark = dict(
    names="a67403c4514fc87c6db16332074cec049d9930c5ae644fc3734dce3442eaed6d",
    renamed={
        "bird": "bird avian",
        "chair": "chair seat",
        "person": "person with clothes people human",
        "tvmonitor": "tvmonitor screen",
    },
    protocol="cliper",
    published={"_delete_": True, "ViT-B-16": {method: 84.3, method + ",refine=sd21": 85.5}},
    source={
        method: "CLIPer authors' README, without diffusion",
        method + ",refine=sd21": "CLIPer authors' README, with diffusion",
    },
)
