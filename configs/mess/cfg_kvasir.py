_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_kvasir.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/kvasir-instrument",
        img_suffix=".png",
        seg_map_suffix=".png",
        data_prefix=dict(img_path="images_detectron2/test", seg_map_path="annotations_detectron2/test"),
    )
)

benchmark = dict(
    names="7b6d965cac3e2262187869860b207e3b513a577a5371a4635795b4d4afebbb1c",
    name="kvasir",
    images=118,
    protocol="mess",
)
