_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_building.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/xBD/test",
        img_suffix=".png",
        seg_map_suffix=".png",
        data_prefix=dict(img_path="images_pre", seg_map_path="targets_cvt_pre"),
    )
)

benchmark = dict(
    names="f327203922effa9e246e902b290c43cd5677f492807d5952d7c2de9ca58be3c0",
    name="xbd",
)
