_base_ = "../cfg_city_scapes.py"

model = dict(method="RADSeg", backbone="C-RADIOv3-B", pretrained="nvidia", short_side=688, crop=336, logit_scale=100.0)

benchmark = dict(
    protocol="radseg",
    published={"_delete_": True},  # the paper prints means over data sets alone
)
