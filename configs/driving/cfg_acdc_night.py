_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/../cls_city_scapes.txt")

test_dataloader = dict(
    dataset=dict(
        type="CityscapesDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/acdc",
        img_suffix="_rgb_anon.png",
        seg_map_suffix="_gt_labelTrainIds.png",
        data_prefix=dict(img_path="rgb_anon/night/val", seg_map_path="gt/night/val"),
    )
)

benchmark = dict(
    names="fd246b97d94b4cc6893f6b8d875c032921c02b9df71b070a2cf3504d6a9728e6",
    name="acdc_night",
)
