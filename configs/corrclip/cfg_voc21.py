_base_ = "../cfg_voc21.py"

model = dict(
    method="CorrCLIP+MAPVOTE",
    pretrained="metaclip_fullcc",
    vocabulary="{{ fileDirname }}/cls_voc21.txt",
    short_side=336,
    crop=336,
    stride=112,
    logit_scale=40.0,
    threshold=0.2,
)

benchmark = dict(
    protocol="corrclip",
    published={"_delete_": True, "ViT-B-16 metaclip_fullcc": {"CorrCLIP+MAPVOTE": 74.8}},
    source={"CorrCLIP+MAPVOTE": "CorrCLIP authors' README, masks by SAM2 from 32 x 32 points"},
)
