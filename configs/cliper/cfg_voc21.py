_base_ = "../cfg_voc21.py"

# ViT-L-14: --backbone ViT-L-14 --method CLIPer:background=True,select=-2,score_threshold=0.5,normalise=True \
#   --cfg-options model.logit_scale=50 model.threshold=0.4
method = "CLIPer:background=True,score_threshold=0.7,normalise=True,window=336"

model = dict(
    method=method,
    vocabulary="{{ fileDirname }}/cls_voc21.txt",
    templates="car15",
    short_side=336,
    resize="pil",
    crop=0,
    logit_scale=100.0,
    threshold=0.6,
)

benchmark = dict(
    names="a05640cb2c079241abb33dc400cff00aeb325d780a7ccf30540a2cfc47d4f6e2",
    renamed={
        "background": "ground",
        "bird": "bird avian",
        "chair": "chair seat",
        "person": "person with clothes people human",
        "tvmonitor": "tvmonitor screen",
    },
    protocol="cliper",
    published={"_delete_": True, "ViT-B-16": {method: 62.1, method + ",refine=sd21": 66.5}},
    source={
        method: "CLIPer authors' README, sliding, without diffusion",
        method + ",refine=sd21": "CLIPer authors' README, sliding, with diffusion",
    },
)
