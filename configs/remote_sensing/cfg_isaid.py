_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_isaid.txt")

test_dataloader = dict(
    dataset=dict(
        type="iSAIDDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/iSAID",
        data_prefix=dict(img_path="img_dir/val", seg_map_path="ann_dir/val"),
    )
)

benchmark = dict(
    names="a19c3743a93efd10e775cde64cab4c02f3f6e3e8fda9f3966e3552ba43f3083b",
    name="isaid",
    images=11644,
)
