_base_ = "../cfg_context59.py"

model = dict(method="TextRegion", short_side=672, crop=0)

benchmark = dict(
    protocol="textregion",
    published={"_delete_": True},  # the paper prints means over data sets alone
)
