_base_ = "../cfg_ade20k.py"

model = dict(
    method="CorrCLIP+MAPVOTE",
    pretrained="metaclip_fullcc",
    vocabulary="{{ fileDirname }}/cls_ade20k.txt",
    crop=336,
    stride=112,
    logit_scale=40.0,
)

benchmark = dict(
    protocol="corrclip",
    published={"_delete_": True, "ViT-B-16 metaclip_fullcc": {"CorrCLIP+MAPVOTE": 26.9}},
    source={"CorrCLIP+MAPVOTE": "CorrCLIP authors' README, masks by SAM2 from 32 x 32 points"},
)
