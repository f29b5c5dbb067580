"""The benchmark configs, against tables written down here a second time."""

import re
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
from clearclip.methods import create_method
from clearclip.spec import Spec
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
    ("gla-clip", "voc20"): (336, 224, 112, 40, 0, 0, None),
    ("gla-clip", "voc21"): (336, 224, 112, 40, 0.1, 0, 66.3),
    ("gla-clip", "context59"): (336, 224, 112, 40, 0, 0, None),
    ("gla-clip", "context60"): (336, 224, 112, 40, 0.1, 0, 36.1),
    ("gla-clip", "coco_object"): (336, 224, 112, 40, 0.1, 0, 37.7),
    ("gla-clip", "coco_stuff164k"): (336, 224, 112, 40, 0, 0, None),
    ("gla-clip", "city_scapes"): (560, 224, 112, 40, 0, 0, 40.8),
    ("gla-clip", "ade20k"): (336, 224, 112, 40, 0, 0, 20.0),
    ("lposs", "voc20"): (448, 224, 112, 50, 0, 0, 78.8),
    ("lposs", "voc21"): (448, 224, 112, 50, 0, 0, 61.1),
    ("lposs", "context59"): (448, 224, 112, 50, 0, 0, 37.8),
    ("lposs", "context60"): (448, 224, 112, 50, 0, 0, 34.6),
    ("lposs", "coco_object"): (448, 224, 112, 50, 0, 0, 33.4),
    ("lposs", "coco_stuff164k"): (448, 224, 112, 50, 0, 0, 25.9),
    ("lposs", "city_scapes"): (448, 224, 112, 50, 0, 0, 37.3),
    ("lposs", "ade20k"): (448, 224, 112, 50, 0, 0, 21.8),
    ("corrclip", "voc20"): (336, 336, 112, 40, 0, 0, 88.8),
    ("corrclip", "voc21"): (336, 336, 112, 40, 0.2, 0, 74.8),
    ("corrclip", "context59"): (336, 336, 112, 40, 0, 0, 48.8),
    ("corrclip", "context60"): (336, 336, 112, 40, 0.15, 0, 44.2),
    ("corrclip", "coco_object"): (336, 336, 112, 40, 0.25, 0, 43.7),
    ("corrclip", "coco_stuff164k"): (336, 336, 112, 40, 0, 0, 31.6),
    ("corrclip", "city_scapes"): (448, 224, 112, 40, 0, 0, 49.4),
    ("corrclip", "ade20k"): (448, 336, 112, 40, 0, 0, 26.9),
    ("textregion", "voc20"): (672, 0, None, 50, 0, 0, None),
    ("textregion", "voc21"): (672, 0, None, 50, 0.4, 0, None),
    ("textregion", "context59"): (672, 0, None, 50, 0, 0, None),
    ("textregion", "context60"): (672, 0, None, 50, 0.35, 0, None),
    ("textregion", "coco_object"): (672, 0, None, 50, 0.5, 0, None),
    ("textregion", "coco_stuff164k"): (896, 0, None, 50, 0, 0, None),
    ("textregion", "city_scapes"): (1344, 0, None, 50, 0, 0, None),
    ("textregion", "ade20k"): (672, 0, None, 50, 0, 0, None),
    ("trident", "voc20"): (336, 336, 112, 40, 0, 0, 84.5),
    ("trident", "voc21"): (448, 336, 224, 40, 0.2, 0, 67.1),
    ("trident", "context59"): (576, 336, 224, 40, 0, 0, 42.2),
    ("trident", "context60"): (576, 336, 224, 40, 0.15, 0, 38.6),
    ("trident", "coco_object"): (448, 336, 224, 40, 0.25, 0, 41.1),
    ("trident", "coco_stuff164k"): (448, 336, 224, 40, 0, 0, 28.3),
    ("trident", "city_scapes"): (688, 336, 224, 40, 0, 0, 42.9),
    ("trident", "ade20k"): (576, 336, 224, 40, 0, 0, 21.9),
    ("radseg", "voc20"): (336, 336, 112, 100, 0, 0, None),
    ("radseg", "context59"): (576, 336, 224, 100, 0, 0, None),
    ("radseg", "coco_stuff164k"): (448, 336, 224, 100, 0, 0, None),
    ("radseg", "city_scapes"): (688, 336, 224, 100, 0, 0, None),
    ("radseg", "ade20k"): (576, 336, 224, 100, 0, 0, None),
    ("sc-clip", "voc20"): (336, 224, 112, 40, 0, 0, 84.3),
    ("sc-clip", "voc21"): (336, 224, 112, 50, 0.15, 0.1, 64.6),
    ("sc-clip", "context59"): (336, 224, 112, 40, 0, 0, 40.1),
    ("sc-clip", "context60"): (336, 224, 112, 40, 0.15, 0, 36.8),
    ("sc-clip", "coco_object"): (336, 224, 112, 55, 0.35, 0, 37.7),
    ("sc-clip", "coco_stuff164k"): (336, 224, 112, 40, 0, 0, 26.6),
    ("sc-clip", "city_scapes"): (560, 224, 112, 40, 0, 0, 41.0),
    ("sc-clip", "ade20k"): (336, 224, 112, 40, 0, 0, 20.1),
}

# As NACLIP's, but for these protocols' own method and published mIoU.
NACLIP_LIKE = {
    "resclip": dict(
        voc20=86.0,
        voc21=61.1,
        context59=36.8,
        context60=33.5,
        coco_object=35.0,
        coco_stuff164k=24.7,
        city_scapes=35.9,
        ade20k=18.0,
    ),
    "pearl": dict(
        voc20=86.9,
        voc21=64.1,
        context59=38.6,
        context60=35.1,
        coco_object=37.3,
        coco_stuff164k=26.3,
        city_scapes=37.6,
        ade20k=19.4,
    ),
}
PROTOCOLS |= {
    (protocol, name): (*PROTOCOLS["naclip", name][:-1], published)
    for protocol, numbers in NACLIP_LIKE.items()
    for name, published in numbers.items()
}
# protocol: the method, where a data set has no other in OWN, and the backbone with its weights
METHODS = {
    "clearclip": "ClearCLIP",
    "sclip": "SCLIP",
    "naclip": "NACLIP",
    "proxyclip": "ProxyCLIP",
    "resclip": "ResCLIP",
    "pearl": "PEARL+TLP",
    "gla-clip": "GLA-CLIP",
    "lposs": "LPOSS",
    "corrclip": "CorrCLIP+MAPVOTE",
    "textregion": "TextRegion",
    "trident": "Trident",
    "radseg": "RADSeg",
    "sc-clip": "SC-CLIP",
}
OWN = {
    ("pearl", "city_scapes"): "PEARL:attention=pearl0.3+TLP:grid=224",
    ("pearl", "ade20k"): "PEARL:attention=pearl0.3+TLP",
    ("textregion", "city_scapes"): "TextRegion:halves=True",
    ("trident", "voc20"): "Trident:cos_factor=0",
    ("trident", "ade20k"): "Trident:keep_negative=False",
    ("trident", "city_scapes"): "Trident:cos_factor=3,keep_negative=False,halves=True",
}
RESCLIP = {  # data set: confidence, rcs_lambda, sfr_tau, sfr_lambda
    "voc20": (0.1, 0.6, 2.1, 0.6),
    "voc21": (0.5, 0.3, 2.2, 0.7),
    "context59": (0.25, 0.4, 1.8, 0.7),
    "context60": (0.3, 0.3, 1.8, 0.7),
    "coco_object": (0.11, 0.4, 1.8, 0.7),
    "coco_stuff164k": (0.11, 0.4, 1.8, 0.7),
    "city_scapes": (0.1, 0.2, 2.1, 0.6),
    "ade20k": (0.25, 0.3, 2.1, 0.7),
}
SAM = {  # data set: what a class must be at least for Trident's published refinement
    "voc20": 0.2,
    "voc21": 0.2,
    "context59": 0.15,
    "context60": 0.15,
    "coco_object": 0.25,
    "coco_stuff164k": 0.05,
    "city_scapes": 0.1,
    "ade20k": 0.05,
}
BACKBONES = {
    "lposs": ("ViT-B-16", "laion2b_s34b_b88k"),
    "corrclip": ("ViT-B-16", "metaclip_fullcc"),
    "radseg": ("C-RADIOv3-B", "nvidia"),
}
SCLIP = ("sclip", ("voc20", "voc21", "coco_object"))
PROXYCLIP = ("proxyclip", ("voc21", "coco_object"))
ENGINEERED = {  # class files other than the plain ones
    "sclip": SCLIP,
    "naclip": SCLIP,
    "resclip": SCLIP,
    "pearl": SCLIP,
    "gla-clip": SCLIP,
    "lposs": SCLIP,
    "sc-clip": SCLIP,
    "proxyclip": PROXYCLIP,
    "textregion": PROXYCLIP,
    "trident": PROXYCLIP,
    "corrclip": ("corrclip", tuple(SETS)),
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
    backbone, weights = BACKBONES.get(protocol, ("ViT-B-16", "openai"))
    assert (model.type, model.backbone, model.pretrained) == ("OpenVocabSegmentor", backbone, weights)
    if protocol != "resclip":
        assert model.method == OWN.get((protocol, name), METHODS[protocol])
    assert len(load_templates(model.templates)) == 80
    assert (model.short_side, model.crop) == (side, crop)
    assert crop == 0 or model.stride == stride
    assert model.get("two_steps", False) == (crop == 0 and protocol != "textregion")
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
    benchmark = config.benchmark
    weights = backbone if weights == "openai" else f"{backbone} {weights}"
    if published is None:
        assert benchmark.published == {}
    else:
        assert benchmark.published[weights][published_method(protocol, name, model.method)] == published
    for methods in benchmark.published.values():
        assert set(methods) <= set(benchmark.source)
        assert all(str(Spec.parse(method)) == method for method in methods)  # as results name it
        assert not any(other in methods for other in METHODS.values() if other != METHODS[protocol])
        others = [m for m in methods if re.split("[:+]", m)[0] != re.split("[:+]", model.method)[0]]
        others += [m for m in methods if protocol == "proxyclip" and m != "ProxyCLIP"]
        others += list(methods) if protocol in ("gla-clip", "lposs") else []
        assert all("third-party" in benchmark.source[m] for m in others)


def published_method(protocol, name, method):
    """The method of the published number: with SAM for Trident, and with more points in CorrCLIP's masks."""
    if protocol == "trident":
        return method + ("+SAM" if name == "city_scapes" else f"+SAM:coarse_threshold={SAM[name]}")
    return (
        method.replace("CLIP", "CLIP:masks=(SAM2:points=32)") + ":masks=(SAM2:points=32)"
        if protocol == "corrclip"
        else method
    )


@pytest.mark.parametrize("name", RESCLIP)
def test_constants_of_resclip(name, tiny_backbone):
    method = create_method(read_config(CONFIGS / f"resclip/cfg_{name}.py").model.method, tiny_backbone)
    assert str(method.base.attention) == str(create_method("NACLIP", tiny_backbone).attention)
    assert (method.rcs_tau, method.path) == (2, True)
    assert (method.confidence, method.rcs_lambda, method.sfr_tau, method.sfr_lambda) == RESCLIP[name]


@pytest.mark.parametrize("name", SETS)
def test_class_files_of_corrclip(name):
    folder = "proxyclip" if name in PROXYCLIP[1] else "."
    theirs = load_vocabulary(CONFIGS / folder / f"cls_{name}.txt").names
    expected = [("people",) if names == ("person",) else names for names in theirs]
    assert ("people",) in expected
    if name == "coco_object":
        assert "bed" in expected[0]
        expected[0] = tuple(word for word in expected[0] if word != "bed")
    assert list(load_vocabulary(CONFIGS / f"corrclip/cls_{name}.txt").names) == expected


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
    with pytest.raises(UserError, match=f"no file {tmp_path / label}[;,]"):
        check_dataset(run)
    (tmp_path / "label.png").rename(tmp_path / label)
    (tmp_path / image).unlink()
    listed = "ann_file" in run.config.test_dataloader.dataset
    with pytest.raises(UserError, match=f"no file {tmp_path / image}[;,]" if listed else "no image "):
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
        ("a\n./a \n", "names a twice, which would count twice"),
        ("../JPEGImages/a\n.././JPEGImages//a\n", "names ../JPEGImages/a twice, which would count twice"),
        ("a\n\n", "has an empty line"),
        ("", "is empty; write one image name a line"),
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


def test_a_split_that_names_what_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARCLIP_DATA", str(tmp_path))
    make_tree(tmp_path, "voc20", np.zeros((40, 60), np.uint8))
    split = tmp_path / VOC12 / SPLITS[VOC12]
    split.write_text("gone\n")
    with pytest.raises(UserError, match=rf"no file .*gone\.jpg, which split {split} names"):
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
