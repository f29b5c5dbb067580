_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_atlantis.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/atlantis",
        img_suffix=".jpg",
        seg_map_suffix=".png",
        data_prefix=dict(img_path="images_detectron2/test", seg_map_path="annotations_detectron2/test"),
    )
)

benchmark = dict(
    names="fec7f31ebf740bec1392317fa395b8c040b7784fa2ac3252e4528f78f52de4cd",
    name="atlantis",
    images=1295,
    protocol="mess",
)
