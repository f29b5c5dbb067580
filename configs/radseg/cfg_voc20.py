_base_ = "../cfg_voc20.py"

model = dict(
    method="RADSeg",
    backbone="C-RADIOv3-B",
    pretrained="nvidia",
    short_side=336,
    crop=336,
    stride=112,
    logit_scale=100.0,
)

benchmark = dict(
    protocol="radseg",
    published={"_delete_": True},  # the paper prints means over data sets alone
)
