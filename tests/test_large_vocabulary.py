"""Vocabularies of more than 255 classes, from the release's own files to the mIoU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

import eval as program
from clearclip.errors import UserError
from clearclip.evaluation.datasets import check_dataset
from clearclip.evaluation.run import load_config
from clearclip.visualize import ignored

ROOT = Path(__file__).resolve().parents[1]
CLASSES = {"context459": 459, "ade847": 847}
pytestmark = pytest.mark.slow


def prepare(script, *args, data, status=0):
    command = [sys.executable, ROOT / "datasets" / f"{script}.py", "--workers", "1", *args]
    environment = os.environ | {"CLEARCLIP_DATA": str(data)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def picture(path, seed, shape=(24, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def read(path):
    with Image.open(path) as image:
        return np.array(image)


@pytest.fixture
def context(tmp_path):
    """A VOC2010 folder with one labelled image that has all 459 classes and some unlabelled pixels."""
    voc = tmp_path / "VOCdevkit" / "VOC2010"
    names = [f"thing {index}" for index in range(1, 460)]
    ids = np.zeros(24 * 40, np.uint16)
    ids[:459] = np.arange(1, 460)
    (voc / "trainval").mkdir(parents=True)
    scipy.io.savemat(voc / "trainval" / "2008_000003.mat", {"LabelMap": ids.reshape(24, 40)})
    # The list is not in the order of its ids.
    (voc / "labels.txt").write_text("".join(f"{i}: {names[i - 1]}\n" for i in range(459, 0, -1)))
    (voc / "ImageSets" / "Main").mkdir(parents=True)
    (voc / "ImageSets" / "Main" / "val.txt").write_text("2008_000003\n")
    picture(voc / "JPEGImages" / "2008_000003.jpg", 0)
    prepare("cvt_pascal_context", "--classes", "459", "--splits", "val", data=tmp_path)
    return tmp_path


def ade_scene(release, split, name, ids, names):
    """An image of the release whose pixels are, in turn, of the object classes `ids` [H, W]."""
    folder = release / "images" / "ADE" / split / "home" / "kitchen"
    picture(folder / f"{name}.jpg", 1, ids.shape)
    pixels = np.stack([ids // 256 * 10, ids % 256, np.full_like(ids, 7)], axis=-1)
    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}_seg.png")
    things = [{"name_ndx": int(i), "name": names[i]} for i in np.unique(ids) if i]
    (folder / f"{name}.json").write_text(json.dumps({"annotation": {"object": things}}), encoding="latin-1")


@pytest.fixture
def ade(tmp_path):
    """A release with 847 classes in both splits, one in training alone, one in validation alone, and no label."""
    release = tmp_path / "ade" / "ADE20K_2021_17_01"
    common = np.sort(np.random.default_rng(0).permutation(np.arange(1, 3600))[:847])
    names = {index: f"object {index}, thing, {index}" for index in range(3690)}
    names[common[1]] = names[common[0]]  # two classes of one name
    names[common[3]] = "thing"
    train, val = np.zeros((2, 24, 40), int)
    train.flat[:847], train.flat[847] = common, 3601
    val.flat[:847], val.flat[847] = common[::-1], 3602
    ade_scene(release, "training", "ADE_train_00000001", train, names)
    ade_scene(release, "validation", "ADE_val_00000001", val, names)
    return tmp_path, release, common, val


def evaluate(name, data, tiny_folder, monkeypatch, *options):
    """Run eval.py on benchmark `name`; returns the result."""
    monkeypatch.setenv("CLEARCLIP_DATA", str(data))
    monkeypatch.chdir(data)
    work = data / "work"
    program.main([
        str(ROOT / "configs" / f"cfg_{name}.py"), "--backbone", f"local-dir:{tiny_folder}", "--work-dir", str(work),
        "--results", str(data / "results.xlsx"), "--cfg-options", "test_dataloader.num_workers=0",
        "model.templates=single", "model.crop=64", "model.stride=32", *options,
        "model.short_side=64",
    ])  # fmt: skip
    return json.loads((work / "result.json").read_text())


def test_context459_maps_and_names(context):
    voc = context / "VOCdevkit" / "VOC2010"
    labels = read(voc / "SegmentationClassContext459" / "2008_000003.png")
    assert labels.dtype == np.uint16
    assert labels.flat[:459].tolist() == list(range(459))
    assert set(labels.flat[459:].tolist()) == {65535}
    assert (voc / "cls_context459.txt").read_text().splitlines() == [f"thing {index}" for index in range(1, 460)]


def test_ade847_maps_and_names(ade):
    data, release, common, _ = ade
    prepare("prepare_ade847", data=data)
    labels = read(release / "annotations_detectron2" / "validation" / "ADE_val_00000001.tif")
    assert labels.dtype == np.uint16
    assert labels.flat[:847].tolist() == list(range(846, -1, -1))
    assert set(labels.flat[847:].tolist()) == {65535}  # a class of validation alone, and unlabelled pixels
    image = release / "images_detectron2" / "validation" / "ADE_val_00000001.jpg"
    assert image.resolve() == release / "images/ADE/validation/home/kitchen/ADE_val_00000001.jpg"

    lines = (release / "cls_ade847.txt").read_text().splitlines()
    first = common[0]
    assert lines[:2] == [f"object {first}, thing, {first}", f"thing, object {first}, {first}"]
    assert lines[2] == f"object {common[2]}, thing, {common[2]}"
    assert lines[3] == "thing (3)"  # taken, and it has no other name
    assert len({line.split(",")[0] for line in lines}) == 847


def test_ade847_names_follow_label_maps_of_another_order(ade):
    data, release, _, _ = ade
    prepare("prepare_ade847", data=data)
    before = (release / "cls_ade847.txt").read_text().splitlines()
    path = release / "annotations_detectron2" / "validation" / "ADE_val_00000001.tif"
    labels = read(path)
    labels[labels != 65535] = 846 - labels[labels != 65535]
    Image.fromarray(labels).save(path)
    prepare("prepare_ade847", data=data)
    after = (release / "cls_ade847.txt").read_text().splitlines()
    assert after[:843] == before[:3:-1]
    np.testing.assert_array_equal(read(path), labels)

    labels[labels == 5] = 6
    Image.fromarray(labels).save(path)
    assert "846 labels with 846 names, not 847" in prepare("prepare_ade847", data=data, status=2)


def test_ade847_refuses_another_release(ade):
    data, release, common, val = ade
    assert "no <id>_seg.png" in prepare("prepare_ade847", str(data), data=data, status=2)
    val[val == common[5]] = common[6]
    ade_scene(release, "validation", "ADE_val_00000001", val, {index: f"object {index}" for index in range(3690)})
    assert "846 object classes occur both" in prepare("prepare_ade847", data=data, status=2)
    assert not (release / "annotations_detectron2").exists()


@pytest.mark.parametrize("name", CLASSES)
def test_labels_above_255_are_scored(name, request, tiny_folder, monkeypatch):
    data = request.getfixturevalue("context" if name == "context459" else "ade")
    if name == "ade847":
        data = data[0]
        prepare("prepare_ade847", data=data)
    result = evaluate(name, data, tiny_folder, monkeypatch)
    scores = list(result["per_class_IoU"].values())
    assert (result["dataset"], result["images"], len(scores)) == (name, 1, CLASSES[name])
    assert None not in scores  # every class is in the ground truth

    # Rewrite the ground truth as what was predicted, and ignored pixels: now the score is perfect, unless labels
    # were cut to 8 bits or ignored pixels counted.
    run = load_config(name)
    sample = check_dataset(run).load_data_list()[0]
    predicted = predict(run.config, sample["img_path"], tiny_folder)
    assert predicted.max() > 255
    truth = predicted.astype(np.uint16)
    truth[:8] = 65535
    Image.fromarray(truth).save(sample["seg_map_path"])
    result = evaluate(name, data, tiny_folder, monkeypatch)
    assert result["mIoU"] == pytest.approx(100)
    assert result["aAcc"] == pytest.approx(100)
    scored = {index for index, iou in enumerate(result["per_class_IoU"].values()) if iou is not None}
    assert scored == set(np.unique(truth[8:]).tolist())


def predict(config, image, tiny_folder):
    from clearclip.segmenter import Segmenter
    from clearclip.vocabulary import load_vocabulary

    segmenter = Segmenter(
        "ClearCLIP", f"local-dir:{tiny_folder}", templates="single", short_side=64, crop=64, stride=32
    )
    return segmenter(image, load_vocabulary(config.model.vocabulary)).labels


def test_pictures_of_large_vocabularies(context, tiny_folder, monkeypatch):
    monkeypatch.setenv("CLEARCLIP_DATA", str(context))
    monkeypatch.chdir(context)
    program.main([
        str(ROOT / "configs" / "cfg_context459.py"), "--backbone", f"local-dir:{tiny_folder}",
        "--work-dir", "work", "--show-dir", "pictures", "--cfg-options", "test_dataloader.num_workers=0",
        "model.templates=single", "model.crop=64", "model.stride=32",
        "model.short_side=64",
    ])  # fmt: skip
    assert (context / "pictures" / "2008_000003.png").is_file()


def test_configs_agree_on_what_is_ignored(monkeypatch, tmp_path):
    monkeypatch.setenv("CLEARCLIP_DATA", str(tmp_path))
    for name, classes in CLASSES.items():
        run = load_config(name)
        config = run.config
        assert config.test_evaluator.ignore_index == ignored(classes)
        assert config.test_dataloader.dataset.pipeline[1].ignore_index == ignored(classes)
        dataset = config.test_dataloader.dataset
        assert Path(config.model.vocabulary) == Path(dataset.data_root) / dataset.class_file
        with pytest.raises(UserError, match=f"data set {name} not found: no file .*; see datasets/README"):
            check_dataset(run)


def test_missing_class_file_is_named(context, monkeypatch):
    monkeypatch.setenv("CLEARCLIP_DATA", str(context))
    path = context / "VOCdevkit" / "VOC2010" / "cls_context459.txt"
    path.unlink()
    with pytest.raises(UserError, match=f"no file {path}; see"):
        check_dataset(load_config("context459"))


@pytest.mark.parametrize("damage", [b"no picture", None])
def test_damaged_label_map_is_named(damage, context, tiny_folder, monkeypatch, capsys):
    path = context / "VOCdevkit" / "VOC2010" / "SegmentationClassContext459" / "2008_000003.png"
    if damage:
        path.write_bytes(damage)
    else:
        Image.fromarray(np.zeros((24, 40, 3), np.uint8)).save(path)
    with pytest.raises(SystemExit) as stop:
        evaluate("context459", context, tiny_folder, monkeypatch)
    assert stop.value.code == 2
    assert str(path) in capsys.readouterr().err
