"""The benchmark configs, against tables written down here a second time."""

from pathlib import Path

import clearclip.evaluation.mmseg  # noqa: F401, registers the data sets

import numpy as np
import pytest
from mmengine.registry import DefaultScope
from PIL import Image

from clearclip.config import override, read_config
from clearclip.errors import UserError
from clearclip.evaluation.datasets import check_dataset, left_aside
from clearclip.evaluation.run import load_config
from clearclip.vocabulary import load_templates, load_vocabulary

# isort: split
from mmseg.registry import DATASETS

CONFIGS = Path(__file__).parents[1] / "configs"

VOC12, VOC10, ADE = "VOCdevkit/VOC2012", "VOCdevkit/VOC2010", "ade/ADEChallengeData2016"
OBJECT, STUFF, CITY = "coco_object", "coco_stuff164k", "cityscapes"

# data set: classes, images, the smallest label in its files
SETS = {
    "voc20": (20, 1449, 1),
    "voc21": (21, 1449, 0),
    "context59": (59, 5104, 1),
    "context60": (60, 5104, 0),
    "coco_object": (81, 5000, 0),
    "coco_stuff164k": (171, 5000, 0),
    "city_scapes": (19, 500, 0),
    "ade20k": (150, 2000, 1),
}
# Every folder but CLIPer's, whose labelling rule has a test file of its own.
PATHS = sorted(path for path in (*CONFIGS.glob("cfg_*.py"), *CONFIGS.glob("*/cfg_*.py")) if path.stem[4:] in SETS)
PATHS = [path for path in PATHS if path.parent.name != "cliper"]

# data set: an image and its label map below the data root
DATASET = "test_dataloader.dataset"
FILES = {
    "voc20": (f"{VOC12}/JPEGImages/a.jpg", f"{VOC12}/SegmentationClass/a.png"),
    "voc21": (f"{VOC12}/JPEGImages/a.jpg", f"{VOC12}/SegmentationClass/a.png"),
    "context59": (f"{VOC10}/JPEGImages/a.jpg", f"{VOC10}/SegmentationClassContext/a.png"),
    "context60": (f"{VOC10}/JPEGImages/a.jpg", f"{VOC10}/SegmentationClassContext/a.png"),
    "coco_object": (f"{OBJECT}/images/val2017/a.jpg", f"{OBJECT}/annotations/val2017/a_instanceTrainIds.png"),
    "coco_stuff164k": (f"{STUFF}/images/val2017/a.jpg", f"{STUFF}/annotations/val2017/a_labelTrainIds.png"),
    "city_scapes": (
        f"{CITY}/leftImg8bit/val/bonn/a_leftImg8bit.png",
        f"{CITY}/gtFine/val/bonn/a_gtFine_labelTrainIds.png",
    ),
    "ade20k": (f"{ADE}/images/validation/a.jpg", f"{ADE}/annotations/validation/a.png"),
}
SPLITS = {
    VOC12: "ImageSets/Segmentation/val.txt",
    VOC10: "ImageSets/SegmentationContext/val.txt",
}

# (protocol, data set): short side, crop, stride, logit scale, threshold, area threshold, published mIoU
PROTOCOLS = {
    ("clearclip", "voc20"): (448, 448, 224, 50, 0, 0, 80.9),
    ("clearclip", "voc21"): (448, 448, 224, 50, 0.5, 0, 51.8),
    ("clearclip", "context59"): (448, 448, 224, 50, 0, 0, 35.9),
    ("clearclip", "context60"): (448, 448, 224, 50, 0.15, 0, 32.6),
    ("clearclip", "coco_object"): (448, 448, 224, 50, 0.4, 0, 33.0),
    ("clearclip", "coco_stuff164k"): (448, 448, 224, 50, 0, 0, 23.9),
    ("clearclip", "city_scapes"): (448, 224, 224, 50, 0, 0, 30.0),
    ("clearclip", "ade20k"): (448, 448, 224, 50, 0, 0, 16.7),
    ("sclip", "voc20"): (336, 224, 112, 40, 0, 0, 81.54),
    ("sclip", "voc21"): (336, 224, 112, 65, 0.1, 0.1, 59.63),
    ("sclip", "context59"): (336, 224, 112, 40, 0, 0, 34.46),
    ("sclip", "context60"): (336, 224, 112, 50, 0.1, 0, 31.74),
    ("sclip", "coco_object"): (336, 224, 112, 50, 0.1, 0, 33.52),
    ("sclip", "coco_stuff164k"): (448, 224, 112, 40, 0, 0, 22.77),
    ("sclip", "city_scapes"): (560, 224, 112, 40, 0, 0, 32.34),
    ("sclip", "ade20k"): (336, 224, 112, 40, 0, 0, 16.45),
    ("naclip", "voc20"): (336, 0, None, 40, 0, 0, 79.7),
    ("naclip", "voc21"): (336, 0, None, 40, 0.1, 0, 58.9),
    ("naclip", "context59"): (336, 224, 112, 40, 0, 0, 35.2),
    ("naclip", "context60"): (336, 224, 112, 40, 0.1, 0, 32.2),
    ("naclip", "coco_object"): (336, 224, 112, 40, 0.1, 0, 33.2),
    ("naclip", "coco_stuff164k"): (336, 224, 112, 40, 0, 0, 23.3),
    ("naclip", "city_scapes"): (560, 224, 112, 40, 0, 0, 35.5),
    ("naclip", "ade20k"): (336, 224, 112, 40, 0, 0, 17.4),
    ("proxyclip", "voc20"): (336, 336, 112, 40, 0, 0, 80.3),
    ("proxyclip", "voc21"): (336, 336, 112, 40, 0.2, 0, 61.3),
    ("proxyclip", "context59"): (336, 336, 112, 40, 0, 0, 39.1),
    ("proxyclip", "context60"): (336, 336, 112, 40, 0.15, 0, 35.3),
    ("proxyclip", "coco_object"): (336, 336, 112, 40, 0.25, 0, 37.5),
    ("proxyclip", "coco_stuff164k"): (336, 336, 112, 40, 0, 0, 26.5),
    ("proxyclip", "city_scapes"): (448, 224, 112, 40, 0, 0, 38.1),
    ("proxyclip", "ade20k"): (448, 336, 112, 40, 0, 0, 20.2),
}
METHODS = {"clearclip": "ClearCLIP", "sclip": "SCLIP", "naclip": "NACLIP", "proxyclip": "ProxyCLIP"}
ENGINEERED = {  # class files other than the plain ones
    "sclip": ("sclip", ("voc20", "voc21", "coco_object")),
    "naclip": ("sclip", ("voc20", "voc21", "coco_object")),
    "proxyclip": ("proxyclip", ("voc21", "coco_object")),
}


def build(config):
    """The test set of a config, its pipeline included."""
    with DefaultScope.overwrite_default_scope("mmseg"):
        return DATASETS.build(config.test_dataloader.dataset)


def make_tree(root, name, labels):
    """One 60 × 40 image of data set `name` and its label map."""
    image, label = FILES[name]
    for path, pixels in ((image, np.zeros((40, 60, 3), np.uint8)), (label, labels)):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / path)
    for folder, split in SPLITS.items():
        if (root / folder).exists():
            (root / folder / split).parent.mkdir(parents=True, exist_ok=True)
            (root / folder / split).write_text("a\n")


def test_every_protocol_has_every_data_set():
    configs = [read_config(path) for path in PATHS]
    assert {(c.benchmark.protocol, c.benchmark.name) for c in configs} == set(PROTOCOLS)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_config(path, monkeypatch):
    monkeypatch.setenv("CLEARCLIP_DATA", "/benchmarks")
    config = read_config(path)
    name, protocol = config.benchmark.name, config.benchmark.protocol
    assert (path.stem, path.parent.name) == (
        f"cfg_{name}",
        "configs" if protocol == "clearclip" else protocol,
    )
    side, crop, stride, logit_scale, threshold, area_threshold, published = PROTOCOLS[protocol, name]
    classes, images, _ = SETS[name]

    model = config.model
    assert (model.type, model.method, model.backbone) == ("OpenVocabSegmentor", METHODS[protocol], "ViT-B-16")
    assert (model.pretrained, len(load_templates(model.templates))) == ("openai", 80)
    assert (model.short_side, model.crop) == (side, crop)
    assert crop == 0 or model.stride == stride
    assert (model.logit_scale, model.threshold, model.area_threshold) == (
        logit_scale,
        threshold,
        area_threshold,
    )

    folder, engineered = ENGINEERED.get(protocol, ("", ()))
    assert Path(model.vocabulary).resolve() == CONFIGS / (folder if name in engineered else "") / f"cls_{name}.txt"
    assert len(load_vocabulary(model.vocabulary)) == classes

    steps = config.test_dataloader.dataset.pipeline
    assert steps == [{"type": "LoadImage"}, {"type": "LoadLabels"}, {"type": "PackSegInputs"}]
    assert f"/benchmarks/{FILES[name][0]}".startswith(config.test_dataloader.dataset.data_root)

    assert config.benchmark.images == images
    assert config.benchmark.published["ViT-B-16"][METHODS[protocol]] == published
    for methods in config.benchmark.published.values():
        assert set(methods) <= set(config.benchmark.source)
        assert not any(other in methods for other in METHODS.values() if other != METHODS[protocol])
        others = [m for m in methods if m.removesuffix("+PAMR") != METHODS[protocol]]
        assert all("third-party" in config.benchmark.source[m] for m in others)


def test_data_root_defaults_to_a_folder_here(monkeypatch):
    monkeypatch.delenv("CLEARCLIP_DATA", raising=False)
    assert read_config(CONFIGS / "cfg_voc20.py").test_dataloader.dataset.data_root == "data/VOCdevkit/VOC2012"


@pytest.mark.parametrize("name", SETS)
def test_first_sample(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARCLIP_DATA", str(tmp_path))
    classes, _, first = SETS[name]
    labels = np.full((40, 60), 255, np.uint8)
    labels[0, :classes] = np.arange(first, first + classes)[:60]
    labels[1, 0], labels[1, 1] = first, first + classes - 1
    make_tree(tmp_path, name, labels)

    run = load_config(name)
    assert left_aside(check_dataset(run)) == ""
    dataset = build(run.config)
    assert (len(dataset), len(dataset.metainfo["classes"]), len(dataset.metainfo["palette"])) == (
        1,
        classes,
        classes,
    )
    sample = dataset[0]["data_samples"]
    assert sample.img_path == str(tmp_path / FILES[name][0])
    assert (sample.ori_shape, sample.img_shape) == ((40, 60), (40, 60))
    truth = sample.gt_sem_seg.data[0].numpy()
    assert truth.shape == (40, 60)
    assert list(truth[1, :3]) == [0, classes - 1, 255]
    assert set(np.unique(truth)) <= {*range(classes), 255}


@pytest.mark.parametrize("name", SETS)
def test_background_is_ignored_where_it_is_no_class(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARCLIP_DATA", str(tmp_path))
    make_tree(tmp_path, name, np.zeros((40, 60), np.uint8))
    truth = build(load_config(name).config)[0]["data_samples"].gt_sem_seg.data
    assert truth.unique().tolist() == [0 if SETS[name][2] == 0 else 255]


@pytest.mark.parametrize("name", SETS)
def test_missing_parts_are_named(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARCLIP_DATA", str(tmp_path))
    run = load_config(name)
    image, label = FILES[name]
    root = run.config.test_dataloader.dataset.data_root
    with pytest.raises(UserError, match=rf"data set {name} not found: no file {root}; see datasets/README\.md"):
        check_dataset(run)

    make_tree(tmp_path, name, np.zeros((40, 60), np.uint8))
    check_dataset(run)
    (tmp_path / label).rename(tmp_path / "label.png")
    with pytest.raises(UserError, match=f"no file {tmp_path / label};"):
        check_dataset(run)
    (tmp_path / "label.png").rename(tmp_path / label)
    (tmp_path / image).unlink()
    listed = "ann_file" in run.config.test_dataloader.dataset
    with pytest.raises(UserError, match=f"no file {tmp_path / image};" if listed else "no image "):
        check_dataset(run)


def test_missing_split_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARCLIP_DATA", str(tmp_path))
    make_tree(tmp_path, "voc20", np.zeros((40, 60), np.uint8))
    split = tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
    split.unlink()
    with pytest.raises(UserError, match=f"no file {split};"):
        check_dataset(load_config("voc20"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\na\n", "names a twice, which would count twice"),
        ("a\n\n", "has an empty line"),
        ("\ufeffa\n", "begins with a byte order mark"),
        ("\xff".encode("latin-1"), "is no UTF-8 text; write one image name a line"),
    ],
)
def test_a_split_that_counts_wrong_is_named(text, message, tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARCLIP_DATA", str(tmp_path))
    make_tree(tmp_path, "voc20", np.zeros((40, 60), np.uint8))
    split = tmp_path / VOC12 / SPLITS[VOC12]
    split.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=rf"split {split} .*{message}"):
        check_dataset(load_config("voc20"))


def test_pictures_that_a_suffix_leaves_aside_are_said(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARCLIP_DATA", str(tmp_path))
    make_tree(tmp_path, "ade20k", np.zeros((40, 60), np.uint8))
    folder = tmp_path / ADE / "images/validation"
    for name in ("b.JPG", "c.png", "deep/d.jpeg", "._a.jpg", "notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    run = load_config("ade20k")
    expected = f"pictures in {folder} left aside, as img_suffix is .jpg: 3, such as b.JPG"
    assert left_aside(check_dataset(run)) == expected


def test_labels_beside_the_pictures_are_not_left_aside(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARCLIP_DATA", str(tmp_path))
    make_tree(tmp_path, "ade20k", np.zeros((40, 60), np.uint8))
    image, label = (tmp_path / path for path in FILES["ade20k"])
    label.rename(image.with_suffix(".png"))
    run = load_config("ade20k", overrides={f"{DATASET}.data_prefix.seg_map_path": "images/validation"})
    assert left_aside(check_dataset(run)) == ""


def test_a_limit_takes_the_first_images(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARCLIP_DATA", str(tmp_path))
    make_tree(tmp_path, "voc20", np.zeros((40, 60), np.uint8))
    (tmp_path / VOC12 / SPLITS[VOC12]).write_text("a\nb\n")
    with pytest.raises(UserError, match=r"no file .*b\.jpg"):
        check_dataset(load_config("voc20"))
    assert len(check_dataset(load_config("voc20", limit=1))) == 1


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_checking_a_config_changes_nothing(path):
    run = load_config(path)
    assert run.config == override(read_config(path), {"model.method": run.method})
    assert (run.path, run.altered) == (path, {})
