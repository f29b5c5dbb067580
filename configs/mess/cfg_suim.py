_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_suim.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/SUIM",
        img_suffix=".jpg",
        seg_map_suffix=".png",
        data_prefix=dict(img_path="TEST/images", seg_map_path="annotations_detectron2/test"),
    )
)

benchmark = dict(
    names="cd268581d81f460282d77cf96d8a4b85eca1c63b8f79ac758865638ccaa8c7ac",
    name="suim",
    images=110,
    protocol="mess",
)
