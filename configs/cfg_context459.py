_base_ = "./base_large.py"

# The class file is that of the converter, which takes the names from the data set's own list.
model = dict(vocabulary="{{$CLEARCLIP_DATA:data}}/VOCdevkit/VOC2010/cls_context459.txt")

test_dataloader = dict(
    dataset=dict(
        data_root="{{$CLEARCLIP_DATA:data}}/VOCdevkit/VOC2010",
        class_file="cls_context459.txt",
        ann_file="ImageSets/SegmentationContext/val.txt",
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClassContext459"),
    )
)

# One table of another paper has these, without its protocol, its class names and the methods' options.
published = {
    "SCLIP": 6.68,
    "NACLIP": 7.79,
    "ResCLIP": 7.7,
    "ProxyCLIP": 8.41,
    "SC-CLIP": 8.34,
    "Trident": 8.97,
    "CorrCLIP+MAPVOTE": 11.88,
}

benchmark = dict(
    name="context459",
    images=5105,
    published={"ViT-B-16": published},
    source=dict.fromkeys(published, "third-party table, protocol not known"),
)
