_base_ = "./base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_coco_stuff164k.txt")

test_dataloader = dict(
    dataset=dict(
        type="COCOStuffDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/coco_stuff164k",
        data_prefix=dict(img_path="images/val2017", seg_map_path="annotations/val2017"),
    )
)

benchmark = dict(
    names="becd6d08455eb73734a706e6f3c37e5ede15b5245bcbc84968d356018b8117e1",
    name="coco_stuff164k",
    images=5000,
    published={"ViT-B-16": dict(ClearCLIP=23.9, CLIP=4.4)},
    source=dict(
        ClearCLIP="ClearCLIP paper (ECCV 2024)",
        CLIP="third-party table of the ClearCLIP protocol",
    ),
)
