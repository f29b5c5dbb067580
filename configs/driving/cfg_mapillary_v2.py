_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_mapillary_v2.txt")

test_dataloader = dict(
    dataset=dict(
        type="MapillaryDataset_v2",
        data_root="{{$CLEARCLIP_DATA:data}}/mapillary",
        data_prefix=dict(img_path="validation/images", seg_map_path="validation/v2.0/labels"),
    )
)

benchmark = dict(
    names="5fdb7130b41933f177e87d61801d922f340eb239a4058ec2db22cc63a0f71e08",
    name="mapillary_v2",
    images=2000,
)
