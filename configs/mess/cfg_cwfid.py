_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_cwfid.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/cwfid",
        ann_file="test.txt",
        img_suffix="_image.png",
        seg_map_suffix="_annotation.png",
        data_prefix=dict(img_path="images", seg_map_path="annotations_detectron2/test"),
    )
)

benchmark = dict(
    names="a99b651b48c0e0b75c3175cc3c01f5d0fea9f192147cb6c13b824b8101e342e4",
    name="cwfid",
    images=21,
    protocol="mess",
)
