"""The sanity set: its label maps are what polygons.json draws, and the config reads them."""

import importlib.util
import json
from pathlib import Path

import clearclip.evaluation.mmseg  # noqa: F401, installs what mmseg needs

import numpy as np
import pytest
from mmengine.registry import DefaultScope
from PIL import Image

from clearclip.evaluation.datasets import check_dataset
from clearclip.evaluation.run import load_config
from clearclip.vocabulary import load_vocabulary

# isort: split
from mmseg.registry import DATASETS

ROOT = Path(__file__).parents[1]
SANITY = ROOT / "datasets/sanity"
CLASSES = load_vocabulary(SANITY / "classes.txt").classes
POLYGONS = json.loads((SANITY / "polygons.json").read_text())
IMAGES = sorted(path.name for path in (SANITY / "images").iterdir())


@pytest.fixture(scope="module")
def draw():
    spec = importlib.util.spec_from_file_location("sanity_draw", SANITY / "draw.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.draw


def labels_of(name):
    with Image.open(SANITY / "labels" / f"{Path(name).stem}.png") as labels:
        assert labels.mode == "P"
        return np.array(labels)


def test_every_image_has_polygons_and_labels():
    assert len(IMAGES) == 10
    assert sorted(POLYGONS) == IMAGES
    assert sorted(path.stem for path in (SANITY / "labels").iterdir()) == [Path(name).stem for name in IMAGES]


@pytest.mark.parametrize("name", IMAGES)
def test_labels_are_the_drawn_polygons(name, draw):
    path = SANITY / "images" / name
    with Image.open(path) as image:
        assert (image.format, max(image.size) <= 640) == ("JPEG", True)
        assert path.stat().st_size <= 100_000
        drawn = np.array(draw(POLYGONS[name], image.size, CLASSES))
    labels = labels_of(name)
    np.testing.assert_array_equal(labels, drawn)
    assert set(np.unique(labels)) <= {*range(len(CLASSES)), 255}
    drawn_classes = {polygon["class"] for polygon in POLYGONS[name]} - {"ignored"}
    assert {CLASSES[i] for i in np.unique(labels) if i != 255} == drawn_classes


def test_every_class_occurs():
    assert len(CLASSES) == 23
    assert set().union(*(np.unique(labels_of(name)) for name in IMAGES)) == {*range(len(CLASSES)), 255}


def test_border_pixels_are_ignored(draw):
    square = [[0, 0], [9, 0], [9, 9], [0, 9]]
    right = [[5, 0], [9, 0], [9, 9], [5, 9]]
    corner = [[0, 0], [1, 0], [1, 1], [0, 1]]
    polygons = [{"class": c, "points": p} for c, p in (("cat", square), ("dog", right), ("ignored", corner))]
    labels = np.array(draw(polygons, (10, 10), ("dog", "cat")))
    assert labels[9].tolist() == [1, 1, 1, 255, 255, 255, 255, 0, 0, 0]
    assert labels[:4, 0].tolist() == [255, 255, 255, 255]
    assert labels[4, 0] == 1


def test_readme_names_every_image_and_its_licence():
    lines = (SANITY / "README.md").read_text(encoding="utf-8").splitlines()
    for name in IMAGES:
        (line,) = [line for line in lines if line.startswith(f"| `{name}` |")]
        assert "CC0" in line or "public domain" in line.lower()


def test_config_reads_the_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it lies beside the config, wherever one stands
    run = load_config("sanity")
    check_dataset(run)
    config = run.config
    with DefaultScope.overwrite_default_scope("mmseg"):
        dataset = DATASETS.build(config.test_dataloader.dataset)
    assert len(dataset) == config.benchmark.images == len(IMAGES)
    assert tuple(dataset.metainfo["classes"]) == CLASSES == load_vocabulary(config.model.vocabulary).classes
    assert (config.benchmark.name, config.benchmark.protocol) == ("sanity", "clearclip")
    assert not config.benchmark.published
    for item in (dataset[i] for i in range(len(dataset))):
        sample = item["data_samples"]
        name = Path(sample.img_path).name
        assert item["inputs"].shape[0] == 3  # the grey photograph too
        np.testing.assert_array_equal(sample.gt_sem_seg.data[0].numpy(), labels_of(name))
