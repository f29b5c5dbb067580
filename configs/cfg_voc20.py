_base_ = "./base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_voc20.txt")

test_dataloader = dict(
    dataset=dict(
        type="PascalVOC20Dataset",
        data_root="{{$CLEARCLIP_DATA:data}}/VOCdevkit/VOC2012",
        ann_file="ImageSets/Segmentation/val.txt",
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
    )
)

benchmark = dict(
    names="ad321aed7503dcc7133924e64de4469663af097ad087808e5eb99be60ae8f7cc",
    renamed={"boat": "ship", "diningtable": "table"},
    name="voc20",
    images=1449,
    published={"ViT-B-16": dict(ClearCLIP=80.9, CLIP=41.8)},
    source=dict(
        ClearCLIP="ClearCLIP paper (ECCV 2024)",
        CLIP="third-party table of the ClearCLIP protocol",
    ),
)
