_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/../cls_city_scapes.txt")

test_dataloader = dict(
    dataset=dict(
        type="DarkZurichDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/dark_zurich",
        data_prefix=dict(img_path="rgb_anon/val/night/GOPR0356", seg_map_path="gt/val/night/GOPR0356"),
    )
)

benchmark = dict(
    names="fd246b97d94b4cc6893f6b8d875c032921c02b9df71b070a2cf3504d6a9728e6",
    name="dark_zurich",
    images=50,
)
