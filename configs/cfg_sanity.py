# Ten photographs to see that all works, not a benchmark: datasets/sanity/README.md.

_base_ = "./base.py"

model = dict(vocabulary="{{ fileDirname }}/../datasets/sanity/classes.txt")

test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        metainfo=dict(
            classes=(
                "flag", "cup", "saucer", "spoon", "horse", "person", "sky", "cow", "space shuttle", "table", "grass",
                "building", "helmet", "wall", "dog", "tree", "castle", "log", "cat", "water", "rocket", "parrot",
                "camera",
            )
        ),
        data_root="{{ fileDirname }}/../datasets/sanity",
        img_suffix=".jpg",
        seg_map_suffix=".png",
        data_prefix=dict(img_path="images", seg_map_path="labels"),
    )
)  # fmt: skip

benchmark = dict(name="sanity", images=10, published={}, source={})
