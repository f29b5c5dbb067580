_base_ = "../cfg_coco_object.py"

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
    published={"_delete_": True, "ViT-B-16 metaclip_fullcc": {"CorrCLIP+MAPVOTE": 43.7}},
    source={"CorrCLIP+MAPVOTE": "CorrCLIP authors' README, masks by SAM2 from 32 x 32 points"},
)
