_base_ = "../cfg_context60.py"

published = "CorrCLIP:masks=(SAM2:points=32)+MAPVOTE:masks=(SAM2:points=32)"

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
    names="0138935da617029e03b99697f083abc5337f4246944d2fc77d1b3857c65d5ae0",
    renamed={"person": "people"},
    published={"_delete_": True, "ViT-B-16 metaclip_fullcc": {published: 44.2}},
    source={published: "CorrCLIP authors' README"},
)
