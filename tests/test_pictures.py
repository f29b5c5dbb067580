"""Pictures of an evaluation: image, ground truth, prediction and errors, and the numbers written there."""

import clearclip.evaluation.mmseg  # noqa: F401, installs what mmseg needs

import numpy as np
import pytest
from PIL import Image

from clearclip.evaluation.datasets import PascalVOC20Dataset
from clearclip.evaluation.masks import MaskReader
from clearclip.evaluation.pictures import Pictures, class_iou, draw, own_colours
from clearclip.visualize import palette
from clearclip.visualize.errors import RIGHT, WRONG
from clearclip.visualize.overlay import GREYS, OPACITY

# isort: split
from mmseg.datasets import ADE20KDataset, BaseSegDataset


def grey(height, width):
    return np.full((height, width, 3), 100, np.uint8)


def seen(colour):
    """A colour upon `grey`."""
    return OPACITY * np.asarray(colour, float) + (1 - OPACITY) * GREYS[100]


def count(picture, colour):
    """Pixels of about that colour."""
    return int((np.abs(np.asarray(picture).astype(float) - colour).max(axis=-1) < 1.6).sum())


def test_iou_of_one_image():
    truth = np.array([[0, 0, 1, 255], [0, 0, 1, 255]])
    labels = np.array([[0, 0, 0, 2], [0, 255, 1, 0]])
    # class 0: 3 of 5, class 1: 1 of 2, class 2 only where nothing is known, class 3 nowhere
    np.testing.assert_allclose(class_iou(truth, labels, 4), [60, 50, np.nan, np.nan])


def test_iou_is_that_of_the_counts():
    rng = np.random.default_rng(0)
    truth, labels = rng.integers(0, 5, (40, 50)), rng.integers(0, 5, (40, 50))
    expected = [100 * ((truth == c) & (labels == c)).sum() / ((truth == c) | (labels == c)).sum() for c in range(5)]
    np.testing.assert_allclose(class_iou(truth, labels, 5), expected)


def test_ignored_pixels_are_grey_in_truth_and_errors():
    truth, labels = np.full((60, 80), 255), np.zeros((60, 80), int)
    truth[:, :40] = 0
    labels[30:] = 1
    blank = draw(grey(60, 80), np.full((60, 80), 255), labels, ["a", "b"], palette(2), "photo")
    picture = draw(grey(60, 80), truth, labels, ["a", "b"], palette(2), "photo")
    none = [GREYS[100]] * 3
    assert count(blank, none) > 0.9 * 2 * 60 * 80
    assert 0.4 < count(picture, none) / (2 * 60 * 80) < 0.6
    assert count(picture, seen(RIGHT)) > 0.8 * 30 * 40
    assert count(picture, seen(WRONG)) > 0.8 * 30 * 40
    assert count(blank, seen(RIGHT)) == count(blank, seen(WRONG)) == 0


@pytest.mark.parametrize("ignore_index", [0, 255])
def test_what_counts_nowhere_is_ignored_whatever_its_label(tmp_path, ignore_index):
    truth = np.ones((60, 80), int)
    truth[:, 40:] = ignore_index
    pictures = Pictures(tmp_path, tmp_path, ["a", "b"], "key", ignore_index=ignore_index)
    pictures.save(tmp_path / "x.jpg", grey(60, 80), truth, np.ones((60, 80), int))
    assert pictures.has(tmp_path / "x.jpg")
    with Image.open(tmp_path / "x.png") as picture:
        assert count(picture.convert("RGB"), seen(WRONG)) == 0
        assert count(picture.convert("RGB"), seen(RIGHT)) > 0.8 * 60 * 40
    assert not Pictures(tmp_path, tmp_path, ["a", "b"], "another").has(tmp_path / "x.jpg")


def test_large_images_are_drawn_smaller(tmp_path):
    labels = np.zeros((500, 3000), int)
    picture = draw(grey(500, 3000), labels, labels, ["a"], palette(1), "photo")
    assert 2400 <= picture.width < 2500


def test_benchmarks_have_their_own_colours():
    for dataset in (ADE20KDataset, PascalVOC20Dataset):
        np.testing.assert_array_equal(own_colours(dataset.METAINFO), dataset.METAINFO["palette"])
    assert own_colours(PascalVOC20Dataset.METAINFO)[0].tolist() == [128, 0, 0]  # the aeroplane
    made_up = BaseSegDataset(metainfo=dict(classes=("a", "b")), lazy_init=True)
    assert own_colours(made_up.metainfo) is None
    assert own_colours({"classes": ("a", "b")}) is None


def test_colour_coded_masks_have_the_colours_of_their_palette():
    red, green = 255, 255 << 8
    assert MaskReader(2, "classes.txt", colours={red: 1, green: 0, 7: 1, 9: 255}).palette == [[0, 255, 0], [255, 0, 0]]
    assert MaskReader(3, "classes.txt", colours={red: 1, green: 0}).palette is None
    assert MaskReader(2, "classes.txt").palette is None
