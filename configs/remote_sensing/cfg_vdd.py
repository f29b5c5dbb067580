_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_vdd.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/VDD",
        img_suffix=".JPG",
        seg_map_suffix=".png",
        data_prefix=dict(img_path="test/src", seg_map_path="test/gt"),
    )
)

benchmark = dict(
    names="58d170902ef8c6585b497374c834eae438bade980abe148a1a2762ad1ce6d83a",
    name="vdd",
    images=80,
)
