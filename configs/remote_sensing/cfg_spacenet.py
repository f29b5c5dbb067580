_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_road.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/GlobalRoadSet_Val/SpaceNet_test_567",
        img_suffix=".jpg",
        seg_map_suffix=".png",
        data_prefix=dict(img_path="img", seg_map_path="label_cvt"),
    )
)

benchmark = dict(
    names="af802e2eb6f7c6b1270fecf7823fd778ffb3c72309baa5c2e7912f5a56bf5d73",
    name="spacenet",
    images=567,
)
