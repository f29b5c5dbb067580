_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_potsdam.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/ISPRS_Potsdam",
        img_suffix=".png",
        seg_map_suffix=".png",
        data_prefix=dict(img_path="images_detectron2/test/irrg", seg_map_path="annotations_detectron2/test"),
    )
)

benchmark = dict(
    names="cb14bd74ebfaf6eeb1f28ccf5d86928d3c5b07cf45d38b481825297d0836e0f5",
    name="potsdam",
    images=504,
    protocol="mess",
)
