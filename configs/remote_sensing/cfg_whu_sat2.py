_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_building.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/WHU-Sat-II/1.cropped/test",
        img_suffix=".tif",
        seg_map_suffix=".tif",
        data_prefix=dict(img_path="image", seg_map_path="label_cvt"),
    )
)

benchmark = dict(
    names="f327203922effa9e246e902b290c43cd5677f492807d5952d7c2de9ca58be3c0",
    name="whu_sat2",
    images=3726,
)
