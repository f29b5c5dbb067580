_base_ = "../base.py"

model = dict(vocabulary="{{ fileDirname }}/cls_cub200.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root="{{$CLEARCLIP_DATA:data}}/CUB_200_2011",
        img_suffix=".jpg",
        seg_map_suffix=".png",
        data_prefix=dict(img_path="images_detectron2/test", seg_map_path="annotations_detectron2/test"),
    )
)

benchmark = dict(
    names="6a539fcf79d40778a57ef2ab1fcc90bb09374ab9bd90cbd5a1fe073c34d0a2b2",
    name="cub200",
    images=5794,
    protocol="mess",
)
