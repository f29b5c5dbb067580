_base_ = "../cfg_context59.py"

published = "CorrCLIP:masks=(SAM2:points=32)+MAPVOTE:masks=(SAM2:points=32)"

model = dict(
    method="CorrCLIP+MAPVOTE",
    pretrained="metaclip_fullcc",
    vocabulary="{{ fileDirname }}/cls_context59.txt",
    short_side=336,
    crop=336,
    stride=112,
    logit_scale=40.0,
)

benchmark = dict(
    protocol="corrclip",
    names="b2e1f27127caa435cdb79a8b62760d98927ee348fe23a521bda1f5052aa471a1",
    renamed={"person": "people"},
    published={"_delete_": True, "ViT-B-16 metaclip_fullcc": {published: 48.8}},
    source={published: "CorrCLIP authors' README"},
)
