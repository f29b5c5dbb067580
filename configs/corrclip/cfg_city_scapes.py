_base_ = "../cfg_city_scapes.py"

published = "CorrCLIP:masks=(SAM2:points=32)+MAPVOTE:masks=(SAM2:points=32)"

model = dict(
    method="CorrCLIP+MAPVOTE",
    pretrained="metaclip_fullcc",
    vocabulary="{{ fileDirname }}/cls_city_scapes.txt",
    stride=112,
    logit_scale=40.0,
)

benchmark = dict(
    protocol="corrclip",
    names="dcb8dfa619b1f5b9c4ccaf38aa3eaae3681e8525b43ab99cf4f4c5dbde65ab82",
    renamed={"person": "people"},
    published={"_delete_": True, "ViT-B-16 metaclip_fullcc": {published: 49.4}},
    source={published: "CorrCLIP authors' README"},
)
