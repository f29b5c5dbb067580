_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_pst900.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/PST900_RGBT_Dataset",
        img_suffix=".png",
        seg_map_suffix=".png",
        data_prefix=dict(img_path="test/thermal", seg_map_path="test/labels"),
    )
)

benchmark = dict(
    names="4ebe392813bcec06846f32b8e95e65f683c2bf6cec9628f3ea8df95416247fcb",
    name="pst900",
    images=288,
    protocol="mess",
)
