_base_ = "./base_large.py"

# The class file is written by datasets/prepare_ade847.py, which takes the names from the release.
model = dict(vocabulary="{{$CLEARCLIP_DATA:data}}/ade/ADE20K_2021_17_01/cls_ade847.txt")

test_dataloader = dict(
    dataset=dict(
        data_root="{{$CLEARCLIP_DATA:data}}/ade/ADE20K_2021_17_01",
        class_file="cls_ade847.txt",
        seg_map_suffix=".tif",
        data_prefix=dict(img_path="images_detectron2/validation", seg_map_path="annotations_detectron2/validation"),
    )
)

# One table of another paper has these, without its protocol, its class names and the methods' options.
published = {
    "SCLIP": 5.67,
    "NACLIP": 6.01,
    "ResCLIP": 6.49,
    "ProxyCLIP": 6.9,
    "SC-CLIP": 7.46,
    "Trident": 7.45,
    "CorrCLIP+MAPVOTE": 8.67,
}

benchmark = dict(
    name="ade847",
    images=2000,
    published={"ViT-B-16": published},
    source=dict.fromkeys(published, "third-party table, protocol not known"),
)
