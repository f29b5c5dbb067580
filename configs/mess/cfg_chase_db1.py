_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_chase_db1.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/CHASEDB1",
        img_suffix=".jpg",
        seg_map_suffix=".png",
        data_prefix=dict(img_path="images_detectron2/test", seg_map_path="annotations_detectron2/test"),
    )
)

benchmark = dict(
    names="524807bbf6bc6ad301e96fdc50a1e03a41eef6f7d2e0349d0ca786309cb188a4",
    name="chase_db1",
    images=20,
    protocol="mess",
)
