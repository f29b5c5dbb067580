_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_loveda.txt")

test_dataloader = dict(
    dataset=dict(
        type="LoveDADataset",
        data_root="{{$CLEARCLIP_DATA:data}}/loveDA",
        data_prefix=dict(img_path="img_dir/val", seg_map_path="ann_dir/val"),
    )
)

benchmark = dict(
    names="503e92ee4f24200b2a1f2807a4f5db24ac33a6260d722d81d681b11bed8a365a",
    name="loveda",
    images=1669,
)
