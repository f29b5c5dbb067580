"""Colours, overlays, legends, sheets and saved label maps."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from clearclip.errors import UserError
from clearclip.visualize import ignored, legend_panel, overlay, palette, save_label_map, sheet


def grey(height, width, value=100):
    return np.full((height, width, 3), value, np.uint8)


def found(picture, colour):
    """[H, W] bool: where the picture has exactly that colour."""
    return (np.asarray(picture) == np.asarray(colour, np.uint8)).all(axis=-1)


def test_palette_colours_differ():
    colours = palette(512)
    assert (colours.shape, colours.dtype) == ((512, 3), np.uint8)
    assert len(np.unique(colours, axis=0)) == 512
    assert not (np.ptp(colours.astype(int), axis=1) < 20).any()  # no greys
    for count, apart in ((21, 60), (171, 20)):
        distances = np.linalg.norm(colours[:count, None].astype(int) - colours[None, :count], axis=-1)
        assert distances[~np.eye(count, dtype=bool)].min() > apart


@pytest.mark.parametrize("count", [0, 1, 20, 150, 171, 1203])
def test_small_palettes_begin_large_ones(count):
    assert palette(count).shape == (count, 3)
    np.testing.assert_array_equal(palette(count), palette(1500)[:count])


def test_palette_cannot_be_changed_by_its_users():
    palette(3)[:] = 0
    assert palette(3).any()


def test_overlay_blends_outlines_and_leaves_ignored_pixels():
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    labels = np.zeros((30, 40), int)
    labels[:, 20:] = 1
    labels[25:] = 255
    colours = palette(2).astype(int)
    picture = np.asarray(overlay(image, labels, ["a", "b"], legend=False))
    np.testing.assert_array_equal(picture[25:], image[25:])
    inside = image[:24, :19] * 0.5 + colours[0] * 0.5
    np.testing.assert_allclose(picture[:24, :19], inside, atol=0.5)
    np.testing.assert_array_equal(picture[:24, 19], np.tile(colours[0], (24, 1)))
    np.testing.assert_array_equal(picture[:24, 20], np.tile(colours[1], (24, 1)))
    np.testing.assert_array_equal(picture[24, :20], np.tile(colours[0], (20, 1)))


def test_images_may_be_grey_or_pil():
    labels = np.eye(6, dtype=np.int64)
    pixels = np.arange(36, dtype=np.uint8).reshape(6, 6)
    expected = np.asarray(overlay(np.stack([pixels] * 3, axis=-1), labels, ["a", "b"]))
    image = Image.fromarray(pixels)
    for same in (pixels, pixels[..., None], image, image.convert("RGB"), image.convert("RGBA")):
        np.testing.assert_array_equal(np.asarray(overlay(same, labels, ["a", "b"])), expected)


def test_label_255_is_a_class_where_there_are_that_many():
    assert (ignored(255), ignored(256)) == (255, 65535)
    labels = np.full((9, 9), 255)
    picture = np.asarray(overlay(grey(9, 9), labels, [str(i) for i in range(256)], legend=False))
    np.testing.assert_allclose(picture, grey(9, 9) / 2 + palette(256)[255] / 2, atol=0.5)
    assert found(overlay(grey(9, 9), labels + 65280, ["a"] * 300, legend=False), (100, 100, 100)).all()


@pytest.mark.parametrize(
    ("image", "labels", "message"),
    [
        (grey(4, 5), np.zeros((5, 4), int), "labels of 5×4 pixels do not fit an image of 4×5"),
        (grey(4, 5), np.full((4, 5), 2), "label 2 has no name: there are 2 classes"),
        (grey(4, 5), np.full((4, 5), -1), "label -1 has no name"),
        (grey(4, 5), np.zeros((4, 5)), "labels must be integers"),
        (grey(4, 5), np.zeros(4, int), "labels must be integers"),
        (grey(4, 5).astype(float), np.zeros((4, 5), int), "an image must be uint8"),
        (np.zeros((3, 4, 5), np.uint8), np.zeros((4, 5), int), r"not uint8 \[3, 4, 5\]"),
    ],
)
def test_what_does_not_fit_is_refused(image, labels, message):
    with pytest.raises(UserError, match=message):
        overlay(image, labels, ["a", "b"])


def test_legend_lists_classes_by_area():
    labels = np.full((10, 10), 255)
    labels[:2], labels[2:7], labels[7] = 3, 0, 2
    panel = legend_panel(labels, ["a", "b", "c", "d"], size=16)
    colours = palette(4)
    tops = [np.flatnonzero(found(panel, colour).any(axis=1)) for colour in colours]
    assert tops[1].size == 0
    assert tops[0][0] < tops[3][0] < tops[2][0]
    more = legend_panel(np.stack([labels, np.full((10, 10), 1)]), ["a", "b", "c", "d"], size=16)
    assert np.flatnonzero(found(more, colours[1]).any(axis=1))[0] == tops[0][0]


def test_the_legend_stands_where_it_makes_the_picture_smaller():
    pictures = {shape: overlay(grey(*shape), np.zeros(shape, int), ["a"]) for shape in ((60, 300), (300, 200))}
    assert [(picture.height > h, picture.width > w) for (h, w), picture in pictures.items()] == [
        (False, True),
        (True, False),
    ]
    for (height, width), picture in pictures.items():
        colour = found(picture, palette(1)[0])
        assert not colour[:height, :width].any()
        assert colour.sum() >= 100


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (40, 2000), (300, 400)])
def test_legend_of_171_classes_stays_readable(shape):
    names = [f"class {i} with a name that goes on and on for ever" for i in range(171)]
    labels = np.arange(shape[0] * shape[1]).reshape(shape) % 171
    picture = overlay(grey(*shape), labels, names)
    assert picture.width < shape[1] + 1200
    assert picture.height < shape[0] + 4000
    legend = np.array(picture)
    legend[: shape[0], : shape[1]] = 255
    colours, counts = np.unique(legend.reshape(-1, 3), axis=0, return_counts=True)
    swatches = {tuple(colour) for colour, count in zip(colours, counts) if count >= 100}
    assert len(swatches & set(map(tuple, palette(171)))) == len(np.unique(labels))


@given(
    labels=arrays.arrays(
        np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.sampled_from([0, 1, 2, 255])
    )
)
def test_the_image_stays_in_its_corner(labels):
    height, width = labels.shape
    picture = np.asarray(overlay(grey(height, width), labels, ["a", "b", "c"]))
    bare = np.asarray(overlay(grey(height, width), labels, ["a", "b", "c"], legend=False))
    np.testing.assert_array_equal(picture[:height, :width], bare)
    np.testing.assert_array_equal((bare == 100).all(axis=-1), labels == 255)


def test_sheet_shows_every_picture_unchanged():
    red, green, blue = (np.full((20 + 10 * i, 30, 3), np.eye(3)[i] * 255, np.uint8) for i in range(3))
    picture = sheet([[("image", red), ("truth", green)], [("image", blue)], [("", Image.fromarray(red))]])
    areas = {tuple(colour): int(found(picture, colour).sum()) for colour in np.eye(3, dtype=int) * 255}
    assert areas == {(255, 0, 0): 1200, (0, 255, 0): 900, (0, 0, 255): 1200}
    first, second = (np.nonzero(found(picture, colour))[1] for colour in ((255, 0, 0), (0, 255, 0)))
    assert first.max() < second.min()


def test_sheet_repeats_titles_only_where_they_change():
    row = [("image", grey(20, 60)), ("truth", grey(20, 60))]
    one, two = sheet([row]), sheet([row, row])
    other = sheet([row, [("image", grey(20, 60)), ("CLIP", grey(20, 60))]])
    gap = 6
    assert two.height - one.height == 20 + gap
    assert other.height > two.height


def test_sheet_makes_room_for_titles():
    narrow = sheet([[("a title", grey(5, 2)), ("b", grey(5, 2))]])
    assert narrow.width > 50
    with pytest.raises(UserError, match="at least one picture"):
        sheet([[], []])


@pytest.mark.parametrize(
    ("classes", "mode", "values"),
    [(3, "P", [0, 2, 255]), (255, "P", [0, 254, 255]), (256, "I;16", [0, 255, 65535]), (1000, "I;16", [7, 999])],
)
def test_label_maps_are_read_back(tmp_path, classes, mode, values):
    labels = np.resize(np.array(values), (7, 5))
    save_label_map(labels, tmp_path / "new" / "labels.png", classes)
    with Image.open(tmp_path / "new" / "labels.png") as saved:
        assert saved.mode == mode
        np.testing.assert_array_equal(np.array(saved), labels)
        if mode == "P":
            colours = np.array(saved.getpalette()).reshape(-1, 3)
            np.testing.assert_array_equal(colours[:classes], palette(classes))


def test_label_map_with_an_unknown_class_is_not_written(tmp_path):
    with pytest.raises(UserError, match="label 5 has no name: there are 5 classes, and 255 is ignored"):
        save_label_map(np.full((3, 3), 5), tmp_path / "labels.png", 5)
    assert not list(tmp_path.iterdir())


def test_import_is_light():
    code = "import sys, clearclip.visualize; print({'torch', 'matplotlib', 'mmseg'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
