_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_zerowaste.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/zerowaste-f",
        img_suffix=".PNG",
        seg_map_suffix=".PNG",
        data_prefix=dict(
            img_path="splits_final_deblurred/test/data", seg_map_path="splits_final_deblurred/test/sem_seg"
        ),
    )
)

benchmark = dict(
    names="9e986949d7b5df8f3f1c2d41d85fac443aecea9e1f7f0bbbca060c5f42d8ed59",
    name="zerowaste",
    images=929,
    protocol="mess",
)
