_base_ = "../cfg_coco_stuff164k.py"

# The authors also bound the long side, to 1334 pixels; here the bound is 2048 in all protocols.
model = dict(method="TextRegion", short_side=896, crop=0)

benchmark = dict(
    protocol="textregion",
    published={"_delete_": True},  # the paper prints means over data sets alone
)
