_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_deepcrack.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/DeepCrack",
        img_suffix=".jpg",
        seg_map_suffix=".png",
        data_prefix=dict(img_path="test_img", seg_map_path="annotations_detectron2/test"),
    )
)

benchmark = dict(
    names="77b07d6d8a7cfd722bf8e4aafbac6caa4ed2d1124a212dd024c59be95aad68c9",
    name="deepcrack",
    images=237,
    protocol="mess",
)
