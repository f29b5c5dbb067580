_base_ = "../cfg_coco_object.py"

published = "CorrCLIP:masks=(SAM2:points=32)+MAPVOTE:masks=(SAM2:points=32)"

model = dict(
    method="CorrCLIP+MAPVOTE",
    pretrained="metaclip_fullcc",
    vocabulary="{{ fileDirname }}/cls_coco_object.txt",
    short_side=336,
    crop=336,
    stride=112,
    logit_scale=40.0,
    threshold=0.25,
)

benchmark = dict(
    protocol="corrclip",
    names="103810c161d951a503fe8b26b118fa9727033d93f132a0cd360224cb0ec20761",
    renamed={"background": "sky", "person": "people"},
    published={"_delete_": True, "ViT-B-16 metaclip_fullcc": {published: 43.7}},
    source={published: "CorrCLIP authors' README"},
)
