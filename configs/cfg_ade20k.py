_base_ = "./base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_ade20k.txt")

test_dataloader = dict(
    dataset=dict(
        type="ADE20KDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/ade/ADEChallengeData2016",
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
    )
)

benchmark = dict(
    names="54de501704dd728cae3d584dc42d779a6ee338afcd21361fce1543f5377767ae",
    name="ade20k",
    images=2000,
    published={"ViT-B-16": dict(ClearCLIP=16.7, CLIP=2.1)},
    source=dict(
        ClearCLIP="ClearCLIP paper (ECCV 2024)",
        CLIP="third-party table of the ClearCLIP protocol",
    ),
)
