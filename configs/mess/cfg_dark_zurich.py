_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_dark_zurich.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/Dark_Zurich",
        img_suffix="_rgb_anon.png",
        seg_map_suffix="_gt_labelIds.png",
        data_prefix=dict(img_path="rgb_anon/val/night/GOPR0356", seg_map_path="annotations_detectron2/val"),
    )
)

benchmark = dict(
    names="cc2fe3fa329461a175d201b889d3fc4963419a4e1a04431dbd879e8c4417d996",
    name="dark_zurich",
    images=50,
    protocol="mess",
)
