_base_ = "../cfg_coco_object.py"

model = dict(
    method="TextRegion",
    vocabulary="{{ fileDirname }}/../proxyclip/cls_coco_object.txt",
    short_side=672,
    crop=0,
    threshold=0.5,
)

benchmark = dict(
    protocol="textregion",
    published={"_delete_": True},  # the paper prints means over data sets alone
)
