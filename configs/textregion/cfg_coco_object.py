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
    names="f642995d02bc360ab4babb440e970b952c11c4ad9a69e7bc787c64b62fa7f142",
    renamed={"background": "sky"},
    published={"_delete_": True},  # the paper prints means over data sets alone
)
