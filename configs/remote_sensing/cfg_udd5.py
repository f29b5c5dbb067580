_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_udd5.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/UDD/UDD5",
        img_suffix=".JPG",
        seg_map_suffix=".png",
        data_prefix=dict(img_path="val/src", seg_map_path="val/gt"),
        pipeline=[
            dict(type="LoadImage"),
            dict(type="LoadLabels", values=[1, 2, 3, 4, 0]),
            dict(type="PackSegInputs"),
        ],
    )
)

benchmark = dict(
    names="c9198f9c20e86322820c53a42de93c22b914a875b9f7a25a1079a48c7c110b62",
    name="udd5",
    images=40,
)
