_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_isaid.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/isaid",
        img_suffix=".png",
        seg_map_suffix=".png",
        data_prefix=dict(img_path="images_detectron2/val", seg_map_path="annotations_detectron2/val"),
    )
)

benchmark = dict(
    names="81cd531c96461f489eab7441b647b2df706dbd6fa6226e502a6cd4013031bd89",
    name="isaid",
    images=4055,
    protocol="mess",
)
