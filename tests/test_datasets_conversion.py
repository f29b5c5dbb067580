"""The converters of datasets/, run as a user runs them, on tiny trees."""

import ast
import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

DATASETS = Path(__file__).resolve().parents[1] / "datasets"


def run(script, *args, status=0, data=None):
    """Run a converter, with $CLEARCLIP_DATA at `data`, and return what it says on stderr."""
    environment = os.environ | ({"CLEARCLIP_DATA": str(data)} if data else {})
    command = [sys.executable, DATASETS / f"{script}.py", *args]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def load(script, monkeypatch):
    monkeypatch.syspath_prepend(str(DATASETS))
    return importlib.import_module(script)


def mmseg_classes(file, dataset):
    """The class names in MMSeg's source: importing MMSeg is slow and needs a stand-in."""
    folder = Path(importlib.util.find_spec("mmseg").submodule_search_locations[0])
    tree = ast.parse((folder / "datasets" / file).read_text())
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == dataset)
    metainfo = next(node.value for node in body if isinstance(node, ast.Assign))
    return next(ast.literal_eval(item.value) for item in metainfo.keywords if item.arg == "classes")


def write(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(labels)).save(path)


def read(path):
    with Image.open(path) as image:
        return np.array(image)


@pytest.fixture
def stuff(tmp_path):
    """COCO-Stuff val2017 with two images; every raw id occurs."""
    root = tmp_path / "coco_stuff164k"
    ids = np.append(np.arange(182), 255).astype(np.uint8)
    for name, raw in {"000000000139": ids[None], "000000000285": ids[::-1, None]}.items():
        write(root / "annotations" / "val2017" / f"{name}.png", raw)
        write(root / "images" / "val2017" / f"{name}.jpg", np.zeros((*raw.shape, 3), np.uint8))
    return root


def test_coco_stuff(stuff, tmp_path):
    run("cvt_coco_stuff", data=tmp_path)
    folder = stuff / "annotations" / "val2017"
    train = read(folder / "000000000139_labelTrainIds.png")[0]
    assert train[:11].tolist() == list(range(11))
    assert train[11] == 255
    assert train[12] == 11  # stop sign
    assert train[89] == 79  # toothbrush, the last thing
    assert train[91] == 80  # banner, the first stuff
    assert train[181] == 170  # wood, the last
    assert train[-1] == 255
    assert sorted(train[train < 255]) == list(range(171))
    assert len(mmseg_classes("coco_stuff.py", "COCOStuffDataset")) == 171

    # The maps it has made are not taken for raw ones.
    run("cvt_coco_stuff", stuff, "--overwrite")
    assert len(list(folder.iterdir())) == 4


def test_coco_object_is_the_same_from_raw_and_from_train_ids(stuff, tmp_path):
    run("cvt_coco_object", data=tmp_path)
    run("cvt_coco_stuff", stuff)
    for path in stuff.glob("annotations/val2017/*.png"):
        if path.stem.isdigit():
            path.unlink()
    run("cvt_coco_object", stuff, "--out", tmp_path / "other", "--workers", "1")

    name = "annotations/val2017/000000000139_instanceTrainIds.png"
    labels = read(tmp_path / "coco_object" / name)
    np.testing.assert_array_equal(labels, read(tmp_path / "other" / name))
    names = mmseg_classes("coco_stuff.py", "COCOStuffDataset")
    things = labels[0, :90][labels[0, :90] > 0]  # raw ids 0..89 in order
    assert things.tolist() == list(range(1, 81))
    assert (names[0], names[79]) == ("person", "toothbrush")
    assert not labels[0, 90:].any()  # stuff and unlabelled are background


def test_coco_object_images_are_linked_or_copied(stuff, tmp_path):
    out = tmp_path / "coco_object"
    image = out / "images" / "val2017" / "000000000285.jpg"
    original = stuff / "images" / "val2017" / "000000000285.jpg"
    run("cvt_coco_object", stuff, "-o", out)
    assert image.is_symlink()
    assert not os.path.isabs(os.readlink(image))
    assert image.samefile(original)

    run("cvt_coco_object", stuff, "-o", out, "--copy-images", "--overwrite")
    assert not image.is_symlink()
    assert image.read_bytes() == original.read_bytes()
    assert original.is_file()

    image.write_bytes(b"kept")
    run("cvt_coco_object", stuff, "-o", out, "--overwrite")
    assert image.read_bytes() == b"kept"


def test_nothing_is_overwritten_unasked(stuff, tmp_path):
    label = tmp_path / "coco_object" / "annotations" / "val2017" / "000000000285_instanceTrainIds.png"
    write(label, np.full((1, 1), 7, np.uint8))
    error = run("cvt_coco_object", status=2, data=tmp_path)
    assert "1 of the 2 label maps exist already" in error
    assert "--overwrite" in error
    assert read(label).tolist() == [[7]]
    assert list(label.parent.iterdir()) == [label]

    run("cvt_coco_object", "--overwrite", data=tmp_path)
    assert read(label).shape == (183, 1)


def test_damaged_and_foreign_files_are_named_and_the_rest_converted(stuff, tmp_path):
    folder = stuff / "annotations" / "val2017"
    damaged = folder / "000000000285.png"
    damaged.write_bytes(damaged.read_bytes()[:50])
    write(folder / "000000000632.png", np.full((2, 2), 200, np.uint8))
    write(folder / "000000000724.png", np.zeros((2, 2, 3), np.uint8))
    for name in ("000000000632", "000000000724"):
        write(stuff / "images" / "val2017" / f"{name}.jpg", np.zeros((2, 2, 3), np.uint8))
    error = run("cvt_coco_object", status=2, data=tmp_path)
    assert "3 of 4 files were not converted" in error
    assert f"cannot read {damaged}" in error
    assert "000000000632.png has the id 200" in error
    assert "000000000724.png is not a map of 8-bit labels but an image of mode RGB" in error
    converted = [path.name for path in (tmp_path / "coco_object").rglob("*.*")]
    assert sorted(converted) == ["000000000139.jpg", "000000000139_instanceTrainIds.png"]


def test_what_is_missing_is_said(stuff, tmp_path):
    (stuff / "images" / "val2017" / "000000000285.jpg").unlink()
    error = run("cvt_coco_object", status=2, data=tmp_path)
    assert "1 of the 2 images are missing" in error
    assert "000000000285.jpg" in error
    assert not (tmp_path / "coco_object").exists()

    error = run("cvt_coco_object", "--splits", "train", "val", status=2, data=tmp_path)
    assert f"{stuff / 'annotations' / 'train2017'}: unpack stuffthingmaps_trainval2017.zip" in error
    nowhere = tmp_path / "nowhere"
    assert "stuffthingmaps_trainval2017.zip" in run("cvt_coco_stuff", nowhere, status=2)
    assert "gtFine_trainvaltest.zip" in run("cvt_cityscapes", nowhere, status=2)
    assert "labels.txt is missing" in run("cvt_pascal_context", nowhere, status=2)


def test_cityscapes(tmp_path):
    folder = tmp_path / "cityscapes" / "gtFine" / "val" / "lindau"
    write(folder / "lindau_000000_000019_gtFine_labelIds.png", np.arange(34, dtype=np.uint8)[None])
    run("cvt_cityscapes", data=tmp_path)
    train = read(folder / "lindau_000000_000019_gtFine_labelTrainIds.png")[0]
    assert train[train < 255].tolist() == list(range(19))
    names = mmseg_classes("cityscapes.py", "CityscapesDataset")
    found = {name: names[train[label]] for name, label in {"road": 7, "sky": 23, "car": 26, "bicycle": 33}.items()}
    assert all(name == given for name, given in found.items())
    assert train[[0, 9, 18, 29, 30]].tolist() == [255] * 5


@pytest.fixture
def context(tmp_path, monkeypatch):
    """A VOC2010 folder of three images, and a release that labels two of them, with its 459 ids shuffled."""
    classes = load("cvt_pascal_context", monkeypatch).CLASSES
    names = [*classes, *(f"thing {index}" for index in range(400))]
    names = [names[index] for index in np.random.default_rng(0).permutation(459)]
    ids = {name: index for index, name in enumerate(names, 1)}

    voc = tmp_path / "VOCdevkit" / "VOC2010"
    (voc / "trainval").mkdir(parents=True)
    (voc / "labels.txt").write_text("".join(f"{index}: {name}\n" for name, index in ids.items()))
    for name in ("2008_000002", "2008_000003"):
        labels = [ids[name] for name in classes] + [ids["thing 5"], 0]
        scipy.io.savemat(voc / "trainval" / f"{name}.mat", {"LabelMap": np.array([labels], np.uint16)})
    main = voc / "ImageSets" / "Main"
    main.mkdir(parents=True)
    (main / "train.txt").write_text("2008_000002\n2008_000009\n")
    (main / "val.txt").write_text("2008_000003\n")
    return voc


def test_pascal_context(context, tmp_path, monkeypatch):
    classes = load("cvt_pascal_context", monkeypatch).CLASSES
    assert tuple(classes) == mmseg_classes("pascal_context.py", "PascalContextDataset59")
    assert ("background", *classes) == mmseg_classes("pascal_context.py", "PascalContextDataset")

    run("cvt_pascal_context", data=tmp_path)
    for name in ("2008_000002", "2008_000003"):
        with Image.open(context / "SegmentationClassContext" / f"{name}.png") as image:
            assert image.mode == "P"
            assert image.getpalette()[3:9] == [128, 0, 0, 0, 128, 0]
            assert np.array(image)[0].tolist() == [*range(1, 60), 0, 0]
    lists = context / "ImageSets" / "SegmentationContext"
    assert (lists / "train.txt").read_text() == "2008_000002\n"
    assert (lists / "val.txt").read_text() == "2008_000003\n"
    assert "--overwrite" in run("cvt_pascal_context", status=2, data=tmp_path)


def test_pascal_context_of_459_classes(context, tmp_path):
    lists = context / "ImageSets" / "SegmentationContext"
    lists.mkdir()
    (lists / "val.txt").write_text("mine\n")
    (context / "ImageSets" / "Main" / "train.txt").unlink()
    run("cvt_pascal_context", "--classes", "459", "--splits", "val", data=tmp_path)
    labels = read(context / "SegmentationClassContext459" / "2008_000003.png")
    source = scipy.io.loadmat(context / "trainval" / "2008_000003.mat")["LabelMap"]
    assert labels[0, -1] == 65535
    np.testing.assert_array_equal(labels[0, :-1], source[0, :-1] - 1)
    assert (lists / "val.txt").read_text() == "mine\n"
    assert not (lists / "train.txt").exists()


def test_pascal_context_names_what_is_wrong(context, tmp_path):
    (context / "trainval" / "2008_000002.mat").write_bytes(b"not a matrix")
    error = run("cvt_pascal_context", status=2, data=tmp_path)
    assert "1 of 2 files were not converted" in error
    assert "2008_000002.mat" in error
    assert (context / "SegmentationClassContext" / "2008_000003.png").is_file()
    assert (context / "ImageSets" / "SegmentationContext" / "train.txt").read_text() == ""

    scipy.io.savemat(context / "trainval" / "2008_000002.mat", {"LabelMap": np.array([[460, 1]])})
    assert "not a map of labels 0..459" in run("cvt_pascal_context", "--overwrite", status=2, data=tmp_path)
    scipy.io.savemat(context / "trainval" / "2008_000002.mat", {"labels": np.array([[1]])})
    assert "no variable LabelMap" in run("cvt_pascal_context", "--overwrite", status=2, data=tmp_path)

    labels = context / "labels.txt"
    labels.write_text("1: sky\n2: grass\n")
    error = run("cvt_pascal_context", status=2, data=tmp_path)
    assert "lacks aeroplane, bag" in error
    assert "does not number" in run("cvt_pascal_context", "--classes", "459", status=2, data=tmp_path)
    labels.write_text("1: sky\ngrass\n")
    assert "line 2 of" in run("cvt_pascal_context", status=2, data=tmp_path)
