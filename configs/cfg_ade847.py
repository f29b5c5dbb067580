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

benchmark = dict(name="ade847", images=2000)
