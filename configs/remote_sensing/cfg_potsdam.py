_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_potsdam.txt")

test_dataloader = dict(
    dataset=dict(
        type="PotsdamDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/potsdam",
        data_prefix=dict(img_path="img_dir/val", seg_map_path="ann_dir/val"),
    )
)

benchmark = dict(
    names="cb9fe6c2418aa6aed35278387873a88830563207d00bd0d3e3677fa59779f2f4",
    name="potsdam",
    images=2016,
)
