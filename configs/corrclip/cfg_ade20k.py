_base_ = "../cfg_ade20k.py"

published = "CorrCLIP:masks=(SAM2:points=32)+MAPVOTE:masks=(SAM2:points=32)"

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
    names="64ae5f84a95553dd2faaa8f3fb26ef5f2aab2e27a9863de98fcfedd0b3146105",
    renamed={"person": "people"},
    published={"_delete_": True, "ViT-B-16 metaclip_fullcc": {published: 26.9}},
    source={published: "CorrCLIP authors' README"},
)
