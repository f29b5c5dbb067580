"""The steps of a pipeline that read files, against MMSegmentation's own on what both can read."""

import copy
import pickle

import clearclip.evaluation.mmseg  # noqa: F401, installs what mmseg needs

import numpy as np
import pytest
from PIL import Image

from clearclip.errors import UserError
from clearclip.evaluation.loading import LoadImage, LoadLabels, read_labels
from clearclip.evaluation.masks import read_pixels

# isort: split
from mmcv.transforms import LoadImageFromFile
from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs

RANDOM = np.random.default_rng(0)
PHOTO = np.kron(RANDOM.integers(0, 256, (5, 7, 3), np.uint8), np.ones((8, 8, 1), np.uint8))  # 40 × 56
TURNS = {  # EXIF orientation: what a viewer does to the stored pixels
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return str(path)


def load_labels(path, step=None, **extra):
    return (step or LoadLabels())({"seg_map_path": str(path), "seg_fields": [], **extra})["gt_seg_map"]


@pytest.mark.parametrize("mode", ["L", "P", "1"])
@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize("label_map", [None, {0: 2, 1: 255, 2: 0}])
def test_labels_are_mmsegs_where_it_reads_them(mode, reduce, label_map, tmp_path):
    labels = RANDOM.choice([0, 1, 2, 3, 254, 255], (9, 11)).astype(np.uint8)
    image = Image.fromarray(labels if mode != "1" else (labels > 1).astype(np.uint8) * 255)
    image = image.convert("1") if mode == "1" else image
    if mode == "P":
        image.putpalette(RANDOM.integers(0, 256, 768, np.uint8).tobytes())
    image.save(tmp_path / "a.png")
    extra = dict(reduce_zero_label=reduce, label_map=label_map)
    expected = load_labels(tmp_path / "a.png", LoadAnnotations(), **extra).astype(int)
    np.testing.assert_array_equal(load_labels(tmp_path / "a.png", **extra), expected)


@pytest.mark.parametrize(("suffix", "dtype"), [("png", np.uint16), ("tif", np.uint16), ("tif", np.int32)])
def test_labels_of_more_bits_keep_their_values(suffix, dtype, tmp_path):
    labels = np.array([[0, 1, 255], [256, 847, 65535]], dtype)
    save(tmp_path / f"a.{suffix}", labels)
    path = tmp_path / f"a.{suffix}"
    np.testing.assert_array_equal(load_labels(path), labels)
    np.testing.assert_array_equal(
        load_labels(path, LoadLabels(ignore_index=65535), reduce_zero_label=True),
        [[65535, 0, 254], [255, 846, 65535]],
    )
    packed = PackSegInputs()(LoadLabels()({"seg_map_path": str(path)}))
    np.testing.assert_array_equal(packed["data_samples"].gt_sem_seg.data[0], labels)


def write_damaged(path):
    path.write_bytes(b"no picture")


def write_truncated(path):
    save(path, RANDOM.integers(0, 200, (90, 90), np.uint8))
    path.write_bytes(path.read_bytes()[:-2000])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_damaged, "cannot read label map"),
        (write_truncated, "cannot read label map"),
        (lambda path: path.mkdir(), "cannot read label map"),
        (lambda path: save(path, PHOTO, format="PNG"), "is a picture in colour, where one label a pixel is wanted"),
        (lambda path: save(path, PHOTO[..., :2].copy(), format="PNG"), "is a picture in colour"),
        (lambda path: save(path, np.ones((4, 6), np.float32), format="TIFF"), r"holds fractions \(float32\)"),
    ],
)
def test_files_that_are_no_label_map_are_named(write, message, tmp_path):
    path = tmp_path / "a.png"
    write(path)
    with pytest.raises(UserError, match=message) as caught:
        read_labels(path)
    assert str(path) in str(caught.value)
    assert "see datasets/README.md" in str(caught.value)


def test_a_label_map_of_another_size_is_named(tmp_path):
    save(tmp_path / "a.png", np.zeros((10, 20), np.uint8))
    with pytest.raises(UserError, match=r"label map .*a\.png is 10x20, its image 40x56; convert it again"):
        load_labels(tmp_path / "a.png", ori_shape=(40, 56))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_values_of_the_files_get_the_labels_of_the_config(dtype, tmp_path):
    stored = np.array([[0, 1, 2, 255]], dtype)
    save(tmp_path / "a.png", stored)
    step = LoadLabels(values=[1, 2, 0])
    assert load_labels(tmp_path / "a.png", step).tolist() == [[1, 2, 0, 255]]
    assert load_labels(tmp_path / "a.png", step, reduce_zero_label=True).tolist() == [[0, 1, 255, 255]]
    save(tmp_path / "b.png", stored + np.array([[0, 0, 1, 0]], dtype))
    with pytest.raises(UserError, match=r"b\.png has the value 3, for which the config has no label"):
        load_labels(tmp_path / "b.png", step)


def test_renamed_classes_need_255_ignored(tmp_path):
    save(tmp_path / "a.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(UserError, match="need ignore_index=255"):
        load_labels(tmp_path / "a.png", LoadLabels(ignore_index=65535), label_map={0: 255})


def load_image(path, label_map=None, step=None):
    results = {"img_path": str(path)} | ({"seg_map_path": str(label_map)} if label_map else {})
    return (step or LoadImage())(results)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp"])
@pytest.mark.parametrize("colours", [3, 1])
def test_images_are_mmcvs(suffix, colours, tmp_path):
    save(tmp_path / f"a.{suffix}", PHOTO if colours == 3 else PHOTO[..., 0].copy())
    actual = load_image(tmp_path / f"a.{suffix}")
    expected = LoadImageFromFile()({"img_path": str(tmp_path / f"a.{suffix}")})
    np.testing.assert_array_equal(actual["img"], expected["img"])
    assert (
        (actual["ori_shape"], actual["img_shape"]) == (expected["ori_shape"], expected["img_shape"]) == ((40, 56),) * 2
    )


def test_a_file_that_is_no_picture_is_named(tmp_path):
    write_damaged(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg is not a picture"):
        load_image(tmp_path / "a.jpg", tmp_path / "a.png")


def turned(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(path, PHOTO, exif=exif, quality=100, subsampling=0)


@pytest.mark.parametrize("orientation", TURNS)
def test_pixels_are_those_of_the_label_map(orientation, tmp_path, capsys):
    """Stored or shown, by the label map's size; where it does not tell, stored."""
    path, step = tmp_path / "a.jpg", LoadImage()
    turned(path, 1)
    stored = load_image(path)["img"]
    turned(path, orientation)
    shown = TURNS[orientation](stored)
    np.testing.assert_array_equal(load_image(path)["img"], shown)  # without a label map

    save(tmp_path / "stored.png", np.zeros(stored.shape[:2], np.uint8))
    for _ in range(2):
        results = load_image(path, tmp_path / "stored.png", step)
        np.testing.assert_array_equal(results["img"], stored)
        assert load_labels(tmp_path / "stored.png", ori_shape=results["ori_shape"]).shape == stored.shape[:2]
    said = capsys.readouterr().err
    assert said.count("has an EXIF orientation, its label map has not") == (orientation != 1)
    if orientation >= 5:
        save(tmp_path / "shown.png", np.zeros(shown.shape[:2], np.uint8))
        np.testing.assert_array_equal(load_image(path, tmp_path / "shown.png", step)["img"], shown)
    assert capsys.readouterr().err == ""


def test_loaders_go_to_workers():
    for step in (LoadImage(), LoadLabels(ignore_index=7)):
        assert type(copy.deepcopy(step)) is type(pickle.loads(pickle.dumps(step))) is type(step)


@pytest.mark.parametrize(("name", "options"), [
    ("a.jpg", {}), ("a.webp", {}), ("a.webp", {"lossless": True}), ("a.tif", {"compression": "jpeg"}),
])  # fmt: skip
def test_label_maps_that_compression_may_alter_are_refused(name, options, tmp_path):
    labels = Image.fromarray(np.random.default_rng(0).integers(0, 9, (16, 16), np.uint8))
    labels.save(tmp_path / name, **options)
    with pytest.raises(UserError, match=rf"{name} is compressed with losses"):
        read_labels(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name} is a (JPEG|WEBP|TIFF), whose compression alters labels"):
        read_pixels(tmp_path / name)
