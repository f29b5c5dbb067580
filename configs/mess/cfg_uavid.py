_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_uavid.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/uavid_v1.5",
        img_suffix=".png",
        seg_map_suffix=".png",
        data_prefix=dict(img_path="images_detectron2/val", seg_map_path="annotations_detectron2/val"),
    )
)

benchmark = dict(
    names="ee2b5425ec9a490cd65f17d955db107f8d011239824ccfdaa5a3e3daad1c4a4c",
    name="uavid",
    images=840,
    protocol="mess",
)
