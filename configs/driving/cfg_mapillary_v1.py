_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_mapillary_v1.txt")

test_dataloader = dict(
    dataset=dict(
        type="MapillaryDataset_v1",
        data_root="{{$CLEARCLIP_DATA:data}}/mapillary",
        data_prefix=dict(img_path="validation/images", seg_map_path="validation/v1.2/labels"),
    )
)

benchmark = dict(
    names="f39f1b854bbf1cc9e356b29c5b8cc2139a820ca40501608d3ed119426d000810",
    name="mapillary_v1",
    images=2000,
)
