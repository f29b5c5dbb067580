_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_foodseg103.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/FoodSeg103/Images",
        img_suffix=".jpg",
        seg_map_suffix=".png",
        data_prefix=dict(img_path="img_dir/test", seg_map_path="ann_dir/test"),
    )
)

benchmark = dict(
    names="90f56d5602a53de1632ff8832a48de3976290ad5ea9ed7586c765aa729bf7c91",
    name="foodseg103",
)
