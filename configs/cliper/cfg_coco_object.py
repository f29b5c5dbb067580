_base_ = "../cfg_coco_object.py"

# ViT-L-14: --backbone ViT-L-14 --method CLIPer:background=True,select=-2,score_threshold=0.5 \
#   --cfg-options model.logit_scale=50 model.threshold=0.5
method = "CLIPer:background=True,attention_threshold=0.2,score_threshold=0.3,window=224"

model = dict(
    method=method,
    vocabulary="{{ fileDirname }}/cls_coco_object.txt",
    short_side=336,
    resize="pil",
    crop=0,
    logit_scale=50.0,
    threshold=0.3,
)

benchmark = dict(
    names="75c24e65d9558f3d87d6899891e153244f3e902d9d51395dffe3dcaf50a295af",
    renamed={"background": "ground", "person": "person with cloth people human"},
    protocol="cliper",
    published={"_delete_": True, "ViT-B-16": {method: 37.5, method + ",refine=sd21": 40.0}},
    source={
        method: "CLIPer authors' README, sliding, without diffusion, on 5000 images of COCO 2014",
        method + ",refine=sd21": "CLIPer authors' README, sliding, with diffusion, on 5000 images of COCO 2014",
    },
)
