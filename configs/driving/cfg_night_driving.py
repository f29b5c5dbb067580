_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/../cls_city_scapes.txt")

test_dataloader = dict(
    dataset=dict(
        type="NightDrivingDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/NighttimeDrivingTest",
        data_prefix=dict(img_path="leftImg8bit/test/night", seg_map_path="gtCoarse_daytime_trainvaltest/test/night"),
    )
)

benchmark = dict(
    names="fd246b97d94b4cc6893f6b8d875c032921c02b9df71b070a2cf3504d6a9728e6",
    name="night_driving",
)
