_base_ = "../cfg_city_scapes.py"

model = dict(
    method="CorrCLIP+MAPVOTE",
    pretrained="metaclip_fullcc",
    vocabulary="{{ fileDirname }}/cls_city_scapes.txt",
    stride=112,
    logit_scale=40.0,
)

benchmark = dict(
    protocol="corrclip",
    published={"_delete_": True, "ViT-B-16 metaclip_fullcc": {"CorrCLIP+MAPVOTE": 49.4}},
    source={"CorrCLIP+MAPVOTE": "CorrCLIP authors' README, masks by SAM2 from 32 x 32 points"},
)
