_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_building.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/AerialImageDataset/train",
        img_suffix=".png",
        seg_map_suffix=".png",
        data_prefix=dict(img_path="img_dir/split_test", seg_map_path="ann_dir/split_test"),
    )
)

benchmark = dict(
    names="f327203922effa9e246e902b290c43cd5677f492807d5952d7c2de9ca58be3c0",
    name="inria",
    images=675,
)
