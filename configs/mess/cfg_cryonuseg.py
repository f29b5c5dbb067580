_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_cryonuseg.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/CryoNuSeg",
        img_suffix=".png",
        seg_map_suffix=".png",
        data_prefix=dict(img_path="images_detectron2", seg_map_path="annotations_detectron2"),
    )
)

benchmark = dict(
    names="7f2df29d02ccc17e37b55876ec7473ae8f4878f124de5c784558d595eb016915",
    name="cryonuseg",
    images=30,
    protocol="mess",
)
