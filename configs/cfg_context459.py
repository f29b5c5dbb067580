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

benchmark = dict(name="context459", images=5105)
