_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_openearthmap.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/OpenEarthMap",
        img_suffix=".tif",
        seg_map_suffix=".tif",
        data_prefix=dict(img_path="img_dir/val", seg_map_path="ann_dir/val"),
    )
)

benchmark = dict(
    names="548e1c1afe8161b4a6a55cf35091cb267dfa9291c50ef3ab1dcc6de958038195",
    name="openearthmap",
    images=384,
)
