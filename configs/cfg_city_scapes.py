_base_ = "./base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_city_scapes.txt", crop=224)

test_dataloader = dict(
    dataset=dict(
        type="CityscapesDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/cityscapes",
        data_prefix=dict(img_path="leftImg8bit/val", seg_map_path="gtFine/val"),
    )
)

benchmark = dict(
    names="fd246b97d94b4cc6893f6b8d875c032921c02b9df71b070a2cf3504d6a9728e6",
    name="city_scapes",
    images=500,
    published={"ViT-B-16": dict(ClearCLIP=30.0, CLIP=5.5, MaskCLIP=12.6)},
    source=dict(
        ClearCLIP="ClearCLIP paper (ECCV 2024)",
        CLIP="third-party table of the ClearCLIP protocol",
        MaskCLIP="third-party table of the ClearCLIP protocol",
    ),
)
