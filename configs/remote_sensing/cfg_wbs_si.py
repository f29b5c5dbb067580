_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_water.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/WBS-SI",
        ann_file="wbs-si_val.txt",
        img_suffix=".jpg",
        seg_map_suffix=".png",
        data_prefix=dict(img_path="Images", seg_map_path="Masks_cvt"),
    )
)

benchmark = dict(
    names="3504c4ffb3e80cfc80f13dd70cb6880036865a7ec233ab44f6c86dbc9637d203",
    name="wbs_si",
    images=499,
)
