_base_ = "./base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_voc21.txt", threshold=0.5)

test_dataloader = dict(
    dataset=dict(
        type="PascalVOCDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/VOCdevkit/VOC2012",
        ann_file="ImageSets/Segmentation/val.txt",
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
    )
)

benchmark = dict(
    names="533a09dcf5a801dcc500bead06c84d7dc75e53791d2127da598754d9e9539ebb",
    renamed={"boat": "ship", "diningtable": "table"},
    name="voc21",
    images=1449,
    published={"ViT-B-16": dict(ClearCLIP=51.8)},
    source=dict(ClearCLIP="ClearCLIP paper (ECCV 2024)"),
)
