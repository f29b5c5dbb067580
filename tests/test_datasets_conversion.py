"""The converters of datasets/, run as a user runs them, on tiny trees."""

import ast
import importlib
import importlib.metadata
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

DATASETS = Path(__file__).resolve().parents[1] / "datasets"
pytestmark = pytest.mark.slow


def run(script, *args, status=0, data=None, **options):
    """Run a converter, with $CLEARCLIP_DATA at `data`, and return what it says."""
    environment = os.environ | ({"CLEARCLIP_DATA": str(data)} if data else {})
    command = [sys.executable, DATASETS / f"{script}.py", *args]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


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


UNUSED = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
RAW = np.array([*(raw for raw in range(182) if raw not in UNUSED), 255], np.uint8)


@pytest.fixture
def stuff(tmp_path):
    """COCO-Stuff val2017 with two images; every raw id occurs that the data set has."""
    root = tmp_path / "coco_stuff164k"
    for name, raw in {"000000000139": RAW[None], "000000000285": RAW[::-1, None]}.items():
        write(root / "annotations" / "val2017" / f"{name}.png", raw)
        write(root / "images" / "val2017" / f"{name}.jpg", np.zeros((*raw.shape, 3), np.uint8))
    return root


def test_coco_stuff(stuff, tmp_path):
    run("cvt_coco_stuff", data=tmp_path)
    folder = stuff / "annotations" / "val2017"
    train = dict(zip(RAW.tolist(), read(folder / "000000000139_labelTrainIds.png")[0].tolist()))
    assert [train[raw] for raw in range(11)] == list(range(11))
    assert train[12] == 11  # stop sign
    assert train[89] == 79  # toothbrush, the last thing
    assert train[91] == 80  # banner, the first stuff
    assert train[181] == 170  # wood, the last
    assert train.pop(255) == 255
    assert sorted(train.values()) == list(range(171))
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
    assert labels[0, :80].tolist() == list(range(1, 81))  # raw ids 0..89 in order
    assert (names[0], names[79]) == ("person", "toothbrush")
    assert not labels[0, 80:].any()  # stuff and unlabelled are background


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


def test_nothing_is_overwritten_unasked_and_the_rest_is_converted(stuff, tmp_path):
    label = tmp_path / "coco_object" / "annotations" / "val2017" / "000000000285_instanceTrainIds.png"
    write(label, np.full((1, 1), 7, np.uint8))
    said = run("cvt_coco_object", data=tmp_path)
    assert "1 label maps written" in said
    assert "1 were there and are kept, --overwrite replaces them" in said
    assert read(label).tolist() == [[7]]
    assert read(label.with_name("000000000139_instanceTrainIds.png")).shape == (1, 172)

    run("cvt_coco_object", "--overwrite", data=tmp_path)
    assert read(label).shape == (172, 1)


def number_from_one(folder):
    for path in folder.glob("*.png"):
        labels = read(path)
        write(path, np.where(labels == 255, 0, labels + 1).astype(np.uint8))


def test_coco_stuff_numbered_from_one_gives_the_same_maps(stuff, tmp_path):
    folder = stuff / "annotations" / "val2017"
    run("cvt_coco_stuff", stuff)
    run("cvt_coco_object", stuff, "-o", tmp_path / "object")
    converted = {path: read(path) for path in tmp_path.rglob("*TrainIds.png")}
    assert len(converted) == 4
    for path in converted:
        path.unlink()
    number_from_one(folder)
    assert "numbered from 1" in run("cvt_coco_stuff", stuff)
    assert "numbered from 1" in run("cvt_coco_object", stuff, "-o", tmp_path / "object")
    for path, labels in converted.items():
        np.testing.assert_array_equal(read(path), labels)


@pytest.mark.parametrize("script", ["cvt_coco_stuff", "cvt_coco_object"])
def test_coco_stuff_whose_numbering_does_not_show_is_refused(stuff, script):
    folder = stuff / "annotations" / "val2017"
    for path in folder.iterdir():
        write(path, np.full((2, 2), 5, np.uint8))  # airplane, or from one: motorcycle
    assert "none of the 2 maps in" in run(script, stuff, status=2)
    run("cvt_coco_stuff", stuff, "--first-id", "1")
    assert read(folder / "000000000139_labelTrainIds.png").tolist() == [[4, 4]] * 2


def test_a_map_of_the_other_numbering_among_others_is_named(stuff):
    folder = stuff / "annotations" / "val2017"
    write(folder / "000000000632.png", np.full((2, 2), 67, np.uint8))  # dining table, numbered from one
    assert "000000000632.png has the id 67" in run("cvt_coco_stuff", stuff, status=2)


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
    assert "000000000724.png is not a map of 8-bit labels but a colour image of mode RGB" in error
    converted = [path.name for path in (tmp_path / "coco_object").rglob("*TrainIds.png")]
    assert converted == ["000000000139_instanceTrainIds.png"]

    write(damaged, RAW[None])
    for name in ("000000000632", "000000000724"):
        (folder / f"{name}.png").unlink()
    assert "1 label maps written" in run("cvt_coco_object", data=tmp_path)


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
    assert "2 were there and are kept, --overwrite" in run("cvt_pascal_context", data=tmp_path)


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
    assert not (context / "ImageSets" / "SegmentationContext").exists()

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


def test_pascal_context_lists_are_complete_when_the_files_are_mended(context, tmp_path):
    damaged = context / "trainval" / "2008_000002.mat"
    sound = damaged.read_bytes()
    damaged.write_bytes(sound[: len(sound) // 2])
    assert "cannot read" in run("cvt_pascal_context", status=2, data=tmp_path)
    damaged.write_bytes(sound)
    run("cvt_pascal_context", data=tmp_path)
    lists = context / "ImageSets" / "SegmentationContext"
    assert (lists / "train.txt").read_text() == "2008_000002\n"
    assert (lists / "val.txt").read_text() == "2008_000003\n"


def test_pascal_context_reads_lists_as_people_save_them(context, tmp_path):
    main = context / "ImageSets" / "Main"
    (main / "train.txt").write_bytes(b"\xef\xbb\xbf2008_000002\r\n\r\n2008_000009\r\n2008_000002\r\n")
    labels = context / "labels.txt"
    labels.write_bytes(b"\xef\xbb\xbf" + labels.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    run("cvt_pascal_context", data=tmp_path)
    assert (context / "ImageSets" / "SegmentationContext" / "train.txt").read_text() == "2008_000002\n"


@pytest.mark.parametrize("name", ["ImageSets/Main/val.txt", "labels.txt"])
def test_pascal_context_names_a_list_it_cannot_read(context, tmp_path, name):
    path = context / name
    text = path.read_text()
    path.write_text(text, encoding="utf-16")
    assert f"{path} is not UTF-8 text" in run("cvt_pascal_context", status=2, data=tmp_path)
    path.unlink()
    path.mkdir()
    assert f"{path} is not a file" in run("cvt_pascal_context", status=2, data=tmp_path)
    path.rmdir()
    os.mkfifo(path)
    assert f"{path} is not a file" in run("cvt_pascal_context", status=2, data=tmp_path)


def test_pascal_context_refuses_ambiguous_lines(context, tmp_path):
    labels, main = context / "labels.txt", context / "ImageSets" / "Main" / "val.txt"
    text = labels.read_text()
    labels.write_text(text + "7: unheard of\n")
    assert "line 460 of" in run("cvt_pascal_context", status=2, data=tmp_path)
    labels.write_text(text)
    main.write_text("2008_000003  1\n")
    assert f"line 1 of {main} is not the name of one image" in run("cvt_pascal_context", status=2, data=tmp_path)


@pytest.fixture
def cities(tmp_path):
    folder = tmp_path / "cityscapes" / "gtFine" / "val" / "lindau"
    for number in range(3):
        write(folder / f"lindau_00000{number}_000019_gtFine_labelIds.png", np.arange(34, dtype=np.uint8)[None])
    return folder


@pytest.fixture
def release(tmp_path):
    """ADE20K's full release with one picture in each split."""
    folder = tmp_path / "ade" / "ADE20K_2021_17_01" / "images" / "ADE"
    pixels = np.zeros((1, 847, 3), np.uint8)
    pixels[0, :, 0], pixels[0, :, 1] = np.arange(1, 848) // 256 * 10, np.arange(1, 848) % 256
    objects = [{"name_ndx": index, "name": f"thing {index}"} for index in range(1, 848)]
    for split in ("training", "validation"):
        for number in range(2):
            stem = folder / split / "street" / f"ADE_{split}_{number}"
            write(stem.with_name(f"{stem.name}_seg.png"), pixels)
            write(stem.with_suffix(".jpg"), np.zeros((1, 847, 3), np.uint8))
            stem.with_suffix(".json").write_text(json.dumps({"annotation": {"object": objects}}))
    return folder / "validation" / "street"


# The converter, a folder of what it reads, the fixture that fills it, and the suffix of what it reads.
CONVERTERS = [
    ("cvt_coco_stuff", "stuff", "coco_stuff164k/annotations/val2017", ".png"),
    ("cvt_coco_object", "stuff", "coco_stuff164k/annotations/val2017", ".png"),
    ("cvt_cityscapes", "cities", "cityscapes/gtFine/val/lindau", "_gtFine_labelIds.png"),
    ("cvt_pascal_context", "context", "VOCdevkit/VOC2010/trainval", ".mat"),
    ("prepare_ade847", "release", "ade/ADE20K_2021_17_01/images/ADE/validation/street", "_seg.png"),
]
each_converter = pytest.mark.parametrize(("script", "fixture", "folder", "suffix"), CONVERTERS)


def label_maps(tmp_path, before):
    """What a converter has written: {path: content}. No file is hidden or half-written."""
    new = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path not in before}
    assert not [path for path in new if path.name.startswith(".")]
    return {path: content for path, content in new.items() if path.suffix in (".png", ".tif")}


@each_converter
def test_hidden_files_and_thumbnails_are_passed_by(script, fixture, folder, suffix, tmp_path, request):
    request.getfixturevalue(fixture)
    folder = tmp_path / folder
    count = 0
    for path in list(folder.glob(f"*{suffix}")):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
        count += 1
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini"):
        (folder / name).write_bytes(b"\0")
    (folder.parent / "._hidden").mkdir()
    (folder.parent / "._hidden" / f"00{suffix}").write_bytes(b"\0")
    before = set(tmp_path.rglob("*"))
    run(script, data=tmp_path)
    assert len(label_maps(tmp_path, before)) == count


@each_converter
def test_pipes_and_truncated_files_are_named(script, fixture, folder, suffix, tmp_path, request):
    request.getfixturevalue(fixture)
    path = min(path for path in (tmp_path / folder).glob(f"*{suffix}"))
    sound = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    assert f"{path} is a folder, a pipe or a device, not a file" in run(script, status=2, data=tmp_path)
    path.unlink()
    path.write_bytes(sound[: len(sound) // 2])
    assert f"cannot read {path}" in run(script, status=2, data=tmp_path)
    path.write_bytes(sound)
    run(script, data=tmp_path)


@each_converter
def test_a_run_that_was_stopped_goes_on(script, fixture, folder, suffix, tmp_path, request):
    request.getfixturevalue(fixture)
    before = set(tmp_path.rglob("*"))
    run(script, data=tmp_path)
    converted = label_maps(tmp_path, before)
    gone, *kept = converted
    gone.unlink()
    times = [path.stat().st_mtime_ns for path in kept]
    assert f"{len(kept)} were there and are kept" in run(script, data=tmp_path)
    assert label_maps(tmp_path, before) == converted
    assert [path.stat().st_mtime_ns for path in kept] == times


@each_converter
def test_a_full_disk_is_said_once_and_leaves_nothing_half_written(script, fixture, folder, suffix, tmp_path, request):
    request.getfixturevalue(fixture)
    before = set(tmp_path.rglob("*"))

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60, 60))  # what a full disk does, with another number

    error = run(script, status=2, data=tmp_path, preexec_fn=limit)
    assert error.count("cannot write") == 1
    assert "make room and run again" in error
    assert not label_maps(tmp_path, before)
    run(script, data=tmp_path)


def test_ade847_does_not_mix_two_orders_of_the_classes(release, tmp_path):
    run("prepare_ade847", data=tmp_path)
    maps = tmp_path / "ade" / "ADE20K_2021_17_01" / "annotations_detectron2" / "validation"
    first, second = sorted(maps.iterdir())
    write(first, read(first)[:, ::-1])
    second.unlink()
    error = run("prepare_ade847", status=2, data=tmp_path)
    assert f"{first} was made in another order of the classes" in error
    run("prepare_ade847", "--overwrite", data=tmp_path)


def test_two_sources_of_one_target_are_refused(release, tmp_path):
    other = release.parent / "alley"
    other.mkdir()
    (other / "ADE_validation_0_seg.png").write_bytes((release / "ADE_validation_0_seg.png").read_bytes())
    assert "would both become" in run("prepare_ade847", status=2, data=tmp_path)


def kill_worker(source, target):
    target.with_name(f".{target.stem}.abcd1234{target.suffix}").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_said_and_its_temporary_file_removed(tmp_path, monkeypatch):
    common = load("_common", monkeypatch)
    other = tmp_path / ".notes.abcd1234.png"
    other.write_bytes(b"")
    with pytest.raises(common.UserError, match="a worker process was killed"):
        common.convert_all(kill_worker, [(tmp_path / "a", tmp_path / "a.png")], 2)
    assert list(tmp_path.iterdir()) == [other]


def test_a_folder_that_cannot_be_made_is_found_before_anything_is_read(stuff, tmp_path):
    (tmp_path / "taken").write_text("")
    error = run("cvt_coco_object", stuff, "-o", tmp_path / "taken", status=2)
    assert "cannot be written" in error


def in_root(program):
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=DATASETS.parent, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(
    any(distribution.metadata["Name"] == "datasets" for distribution in importlib.metadata.distributions()),
    reason="Hugging Face's datasets is installed",
)
def test_this_folder_is_not_taken_for_hugging_face_datasets():
    find = "import clearclip, importlib.util; print(importlib.util.find_spec('datasets'))"
    assert in_root(find) == ["None"]
    pytest.importorskip("transformers")
    ask = "import clearclip; from transformers.utils import import_utils; print(import_utils.is_datasets_available())"
    assert in_root(ask) == ["False"]


def test_a_package_called_datasets_that_is_installed_is_found(tmp_path):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("name = 'installed'")
    program = f"import sys; sys.path.append({str(tmp_path)!r}); import clearclip, datasets; print(datasets.name)"
    assert in_root(program) == ["installed"]


def test_another_folder_called_datasets_is_left_alone(tmp_path):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "mine.py").write_text("")
    program = f"import sys; sys.path.append({str(tmp_path)!r}); import clearclip, datasets.mine; print('found')"
    assert in_root(program) == ["found"]
