_base_ = "./base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_coco_object.txt", threshold=0.4)

test_dataloader = dict(
    dataset=dict(
        type="COCOObjectDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/coco_object",
        data_prefix=dict(img_path="images/val2017", seg_map_path="annotations/val2017"),
    )
)

benchmark = dict(
    names="d61f98aed1218589d19b57d1680175a97b92dc4a248bd23deb226c8e1dda9f9b",
    name="coco_object",
    images=5000,
    published={"ViT-B-16": dict(ClearCLIP=33.0)},
    source=dict(ClearCLIP="ClearCLIP paper (ECCV 2024)"),
)
