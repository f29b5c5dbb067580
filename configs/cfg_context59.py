_base_ = "./base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_context59.txt")

test_dataloader = dict(
    dataset=dict(
        type="PascalContextDataset59",
        data_root="{{$CLEARCLIP_DATA:data}}/VOCdevkit/VOC2010",
        ann_file="ImageSets/SegmentationContext/val.txt",
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClassContext"),
    )
)

benchmark = dict(
    names="a1f576d93f4c402858caaeda95be2d2889c991f8698f231b63ae69fd028f8c4f",
    name="context59",
    images=5104,
    published={"ViT-B-16": dict(ClearCLIP=35.9, CLIP=9.2)},
    source=dict(
        ClearCLIP="ClearCLIP paper (ECCV 2024)",
        CLIP="third-party table of the ClearCLIP protocol",
    ),
)
