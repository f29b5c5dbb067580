_base_ = "../cfg_voc20.py"

published = "CorrCLIP:masks=(SAM2:points=32)+MAPVOTE:masks=(SAM2:points=32)"

model = dict(
    method="CorrCLIP+MAPVOTE",
    pretrained="metaclip_fullcc",
    vocabulary="{{ fileDirname }}/cls_voc20.txt",
    short_side=336,
    crop=336,
    stride=112,
    logit_scale=40.0,
)

benchmark = dict(
    protocol="corrclip",
    names="677885814099b77491117298058d55aef88bb734489c82cf11600b0d95ff8464",
    renamed={"person": "people"},
    published={"_delete_": True, "ViT-B-16 metaclip_fullcc": {published: 88.8}},
    source={published: "CorrCLIP authors' README"},
)
