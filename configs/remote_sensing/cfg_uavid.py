_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_uavid.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/UAVid",
        img_suffix=".png",
        seg_map_suffix=".png",
        data_prefix=dict(img_path="img_dir/test", seg_map_path="ann_dir/test"),
    )
)

benchmark = dict(
    names="308356235f0a97ab53fa025254a6ea48e08a34663bcdbd0ed5a085264b574916",
    name="uavid",
    images=1020,
)
