_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_mhp.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/LV-MHP-v1",
        img_suffix=".jpg",
        seg_map_suffix=".png",
        data_prefix=dict(img_path="images_detectron2/test", seg_map_path="annotations_detectron2/test"),
    )
)

benchmark = dict(
    names="2515de7a825bfbc41c756a5fe9f6bb7e3d970a094bb8b24702b0e92b57ea0da7",
    name="mhp",
    images=980,
    protocol="mess",
)
