_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_floodnet.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/FloodNet-Supervised_v1.0",
        img_suffix=".png",
        seg_map_suffix=".png",
        data_prefix=dict(img_path="images_detectron2/test", seg_map_path="annotations_detectron2/test"),
    )
)

benchmark = dict(
    names="6b3b9bc8b55534ee1f4c4a3751ecddd1b721be283c5866fc7365b811dde8663b",
    name="floodnet",
    images=5571,
    protocol="mess",
)
