_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/../cls_city_scapes.txt")

test_dataloader = dict(
    dataset=dict(
        type="BDD100KDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/bdd100k",
        data_prefix=dict(img_path="images/10k/val", seg_map_path="labels/sem_seg/masks/val"),
    )
)

benchmark = dict(
    names="fd246b97d94b4cc6893f6b8d875c032921c02b9df71b070a2cf3504d6a9728e6",
    name="bdd100k",
    images=1000,
)
