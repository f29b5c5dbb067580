_base_ = "../cfg_context60.py"

model = dict(
    method="CorrCLIP+MAPVOTE",
    pretrained="metaclip_fullcc",
    vocabulary="{{ fileDirname }}/cls_context60.txt",
    short_side=336,
    crop=336,
    stride=112,
    logit_scale=40.0,
)

benchmark = dict(
    protocol="corrclip",
    published={"_delete_": True, "ViT-B-16 metaclip_fullcc": {"CorrCLIP+MAPVOTE": 44.2}},
    source={"CorrCLIP+MAPVOTE": "CorrCLIP authors' README, masks by SAM2 from 32 x 32 points"},
)
