_base_ = "../cfg_voc21.py"

published = "CorrCLIP:masks=(SAM2:points=32)+MAPVOTE:masks=(SAM2:points=32)"

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
    names="a85f6d9d04fc5b66a3a1ec65419a388bf525501ce9312118f55fccb17669bd3e",
    renamed={"background": "sky", "person": "people"},
    published={"_delete_": True, "ViT-B-16 metaclip_fullcc": {published: 74.8}},
    source={published: "CorrCLIP authors' README"},
)
