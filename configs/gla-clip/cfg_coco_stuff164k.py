_base_ = "../cfg_coco_stuff164k.py"

model = dict(method="GLA-CLIP", short_side=336, crop=224, stride=112, logit_scale=40.0)

benchmark = dict(
    protocol="gla-clip",
    published={"_delete_": True},
)
