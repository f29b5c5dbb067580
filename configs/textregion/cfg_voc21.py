_base_ = "../cfg_voc21.py"

# The authors also bound the long side, to 1008 pixels; here the bound is 2048 in all protocols.
model = dict(
    method="TextRegion",
    vocabulary="{{ fileDirname }}/../proxyclip/cls_voc21.txt",
    short_side=672,
    crop=0,
    threshold=0.4,
)

benchmark = dict(
    protocol="textregion",
    published={"_delete_": True},  # the paper prints means over data sets alone
)
