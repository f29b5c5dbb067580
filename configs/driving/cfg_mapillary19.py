_base_ = "./cfg_mapillary_v1.py"

# Cityscapes' classes, and which of Mapillary's 66 each is; the others are ignored.
classes = {
    "road": [7, 8, 10, 13, 14, 23, 24],
    "sidewalk": [2, 9, 11, 15],
    "building": [17],
    "wall": [6],
    "fence": [3],
    "pole": [44, 45, 47],
    "traffic light": [48],
    "traffic sign": [46, 49, 50],
    "vegetation": [30],
    "terrain": [29],
    "sky": [27],
    "person": [19],
    "rider": [20, 21, 22],
    "car": [55],
    "truck": [61],
    "bus": [54],
    "train": [58],
    "motorcycle": [57],
    "bicycle": [52],
}
values = [255] * 66
for index, labels in enumerate(classes.values()):
    for label in labels:
        values[label] = index
del index, labels, label

model = dict(vocabulary="{{ fileDirname }}/../cls_city_scapes.txt")

test_dataloader = dict(
    dataset=dict(
        type="BDD100KDataset",
        pipeline=[
            dict(type="LoadImage"),
            dict(type="LoadLabels", values=values),
            dict(type="PackSegInputs"),
        ],
    )
)

benchmark = dict(
    names="fd246b97d94b4cc6893f6b8d875c032921c02b9df71b070a2cf3504d6a9728e6",
    name="mapillary19",
)
