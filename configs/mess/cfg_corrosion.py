_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_corrosion.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/Corrosion Condition State Classification",
        img_suffix=".jpeg",
        seg_map_suffix=".png",
        data_prefix=dict(img_path="original/Test/images", seg_map_path="original/Test/masks"),
    )
)

benchmark = dict(
    names="7fa6a43de9d83ca2d07ea25f566e5a9b027dd34ce7ada74bd88ef9f26519abb3",
    name="corrosion",
    images=44,
    protocol="mess",
)
