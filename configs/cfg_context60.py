_base_ = "./base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_context60.txt", threshold=0.15)

test_dataloader = dict(
    dataset=dict(
        type="PascalContextDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/VOCdevkit/VOC2010",
        ann_file="ImageSets/SegmentationContext/val.txt",
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClassContext"),
    )
)

benchmark = dict(
    names="eb7c005ff074ced670c7758dd0d577288838f45998ad9777d09ad21743f5dff9",
    name="context60",
    images=5104,
    published={"ViT-B-16": dict(ClearCLIP=32.6)},
    source=dict(ClearCLIP="ClearCLIP paper (ECCV 2024)"),
)
