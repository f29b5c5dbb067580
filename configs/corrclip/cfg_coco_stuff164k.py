_base_ = "../cfg_coco_stuff164k.py"

published = "CorrCLIP:masks=(SAM2:points=32)+MAPVOTE:masks=(SAM2:points=32)"

model = dict(
    method="CorrCLIP+MAPVOTE",
    pretrained="metaclip_fullcc",
    vocabulary="{{ fileDirname }}/cls_coco_stuff164k.txt",
    short_side=336,
    crop=336,
    stride=112,
    logit_scale=40.0,
)

benchmark = dict(
    protocol="corrclip",
    names="50fd1fbd3d97511e6f7ed5265f519c4aa59da820f4c7e4d20a0a198519403604",
    renamed={"person": "people"},
    published={"_delete_": True, "ViT-B-16 metaclip_fullcc": {published: 31.6}},
    source={published: "CorrCLIP authors' README"},
)
