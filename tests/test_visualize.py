"""Colours, overlays, names on regions, legends, heat maps, error maps, sheets and saved label maps."""

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageChops, ImageDraw
from PIL.PngImagePlugin import PngInfo

from clearclip.errors import UserError
from clearclip.visualize import (
    INFERNO,
    VIRIDIS,
    areas,
    compare,
    encode_picture,
    error_map,
    heat_map,
    ignored,
    legend_panel,
    overlay,
    palette,
    read_legend,
    save_label_map,
    save_picture,
    sheet,
    simulate,
)
from clearclip.visualize.colours import COLOUR_BLIND, OPACITY, blended, difference, oklab
from clearclip.visualize.errors import RIGHT, WRONG
from clearclip.visualize.heat import HEAT_OPACITY
from clearclip.visualize.names import find_place, write_names
from clearclip.visualize.overlay import GREYS, OUTLINE
from clearclip.visualize.sheet import columns_of


def grey(height, width, value=100):
    return np.full((height, width, 3), value, np.uint8)


def found(picture, colour):
    """[H, W] bool: where the picture has exactly that colour."""
    return (np.asarray(picture) == np.asarray(colour, np.uint8)).all(axis=-1)


# Colours


@pytest.mark.parametrize(("count", "apart"), [(3, 0.17), (6, 0.12), (8, 0.095), (12, 0.08), (21, 0.055)])
def test_colours_differ_to_all_eyes(count, apart):
    """In Oklab, where a difference of 0.02 is just seen; to eyes that lack a kind of cone as well."""
    colours = palette(count).astype(float)
    for kind in (None, *COLOUR_BLIND):
        seen = oklab(colours if kind is None else simulate(colours, kind))
        distances = np.linalg.norm(seen[:, None] - seen, axis=-1)
        assert distances[~np.eye(count, dtype=bool)].min() > apart, kind


def test_the_difference_is_that_to_the_worst_eyes():
    red, green = np.array([190.0, 90, 80]), np.array([110.0, 130, 60])
    each = [np.linalg.norm(oklab(simulate(red, kind)) - oklab(simulate(green, kind))) for kind in COLOUR_BLIND]
    assert difference(red[None], green)[0] == pytest.approx(min(each))
    assert min(each) < 0.5 * np.linalg.norm(oklab(red) - oklab(green))


def test_colour_blind_eyes_see_greys_as_they_are():
    greys = np.linspace(0, 255, 9)[:, None].repeat(3, axis=1)
    for kind in COLOUR_BLIND:
        np.testing.assert_allclose(simulate(greys, kind), greys, atol=0.5)


def test_colours_are_soft_and_unlike_in_lightness():
    colours = palette(512)
    assert (colours.shape, colours.dtype) == ((512, 3), np.uint8)
    assert len(np.unique(colours, axis=0)) == 512
    lightness, a, b = oklab(colours).T
    assert np.hypot(a, b).min() > 0.06  # no greys
    assert np.hypot(a, b).max() < 0.17  # nothing glaring: pure red has 0.26
    assert np.ptp(lightness[:4]) > 0.3


@pytest.mark.parametrize("count", [0, 1, 20, 150, 171, 1203])
def test_small_palettes_begin_large_ones(count):
    assert palette(count).shape == (count, 3)
    np.testing.assert_array_equal(palette(count), palette(1500)[:count])


def test_palette_cannot_be_changed_by_its_users():
    palette(3)[:] = 0
    assert palette(3).any()


# Overlays


def test_overlay_greys_blends_outlines_and_leaves_ignored_pixels():
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    labels = np.zeros((30, 40), int)
    labels[:, 20:] = 1
    labels[25:] = 255
    picture = np.asarray(overlay(image, labels, ["a", "b"], legend=False)).astype(int)
    luma = GREYS[np.round(image @ [0.299, 0.587, 0.114]).astype(int)].astype(int)[..., None]
    np.testing.assert_allclose(picture[25:], luma[25:].repeat(3, axis=-1), atol=1)
    inside = luma[:24, :19] * (1 - OPACITY) + palette(2)[0] * OPACITY
    np.testing.assert_allclose(picture[:24, :19], inside, atol=1.5)
    (border,) = np.unique(picture[1:24, 20], axis=0)
    np.testing.assert_allclose(border, palette(2)[1] * OUTLINE, atol=1)


def test_a_legend_has_the_colours_that_are_seen():
    picture = np.asarray(overlay(grey(200, 300, 127), np.zeros((200, 300), int), ["a"], write=False))
    swatch = picture[found(picture, blended(palette(1)[0]))]
    assert len(swatch) > 100
    assert np.abs(picture[100, 150].astype(int) - swatch[0]).max() <= 3


def test_given_colours_are_used():
    red = np.array([[255, 0, 0]], np.uint8)
    picture = np.asarray(overlay(grey(50, 50), np.zeros((50, 50), int), ["a"], colours=red))
    assert found(picture, blended(red[0])).sum() > 50
    r, g, b = picture[5, 5].astype(int)
    assert r - max(g, b) > 150


def test_images_may_be_grey_or_pil_or_files(tmp_path):
    labels = np.eye(6, dtype=np.int64)
    pixels = np.arange(36, dtype=np.uint8).reshape(6, 6)
    expected = np.asarray(overlay(np.stack([pixels] * 3, axis=-1), labels, ["a", "b"]))
    image = Image.fromarray(pixels)
    image.save(tmp_path / "image.png")
    for same in (pixels, pixels[..., None], image, image.convert("RGB"), image.convert("RGBA"), tmp_path / "image.png"):
        np.testing.assert_array_equal(np.asarray(overlay(same, labels, ["a", "b"])), expected)


def test_label_255_is_a_class_where_there_are_that_many():
    assert (ignored(255), ignored(256)) == (255, 65535)
    labels, names = np.full((9, 9), 255), [str(i) for i in range(256)]
    picture = np.asarray(overlay(grey(9, 9), labels, names, legend=False, write=False))
    np.testing.assert_allclose(picture[4, 4], GREYS[100] * (1 - OPACITY) + palette(256)[255] * OPACITY, atol=1)
    assert found(overlay(grey(9, 9), labels + 65280, ["a"] * 300, legend=False), [GREYS[100]] * 3).all()


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


def test_a_picture_is_drawn_at_the_size_in_which_it_is_shown():
    labels = np.zeros((300, 900), np.uint8)
    labels[:, 450:] = 1
    picture = overlay(grey(300, 900), labels, ["a", "b"], legend=False, write=False, max_side=90)
    assert picture.size == (90, 30)
    left, right = (blended(colour).astype(int) for colour in palette(2))
    pixels = np.asarray(picture).astype(int)
    assert np.abs(pixels[5, 20] - left).max() < 20
    assert np.abs(pixels[5, 70] - right).max() < 20


def test_the_legend_stands_where_it_makes_the_picture_smaller():
    pictures = {shape: overlay(grey(*shape), np.zeros(shape, int), ["a"]) for shape in ((60, 300), (300, 200))}
    assert [(picture.height > h, picture.width > w) for (h, w), picture in pictures.items()] == [
        (False, True),
        (True, False),
    ]
    for (height, width), picture in pictures.items():
        colour = found(picture, blended(palette(1)[0]))
        assert not colour[:height, :width].any()
        assert colour.sum() >= 100
    assert overlay(grey(60, 300), np.zeros((60, 300), int), ["a"], columns=3).width == 300  # below


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
    bare = np.asarray(overlay(grey(height, width), labels, ["a", "b", "c"], legend=False, write=False))
    np.testing.assert_array_equal(found(bare, [GREYS[100]] * 3), labels == 255)


# Names on regions


def test_a_name_goes_where_its_region_is_deepest():
    region = np.zeros((100, 200), np.uint8)
    region[10:90, 20:60] = 1  # 80 × 40
    region[45:55, 60:190] = 1  # an arm, too thin
    y, x = find_place(region, np.zeros_like(region), (12, 30))
    assert 35 <= x <= 45
    assert 25 <= y <= 75
    assert find_place(region, region, (12, 30)) is None
    assert find_place(region, np.zeros_like(region), (40, 80)) is None
    assert find_place(region, np.zeros_like(region), (101, 1)) is None


@given(st.data())
def test_names_lie_on_their_regions_and_in_the_picture(data):
    height, width = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
    region = data.draw(arrays.arrays(np.uint8, (height, width), elements=st.integers(0, 1)))
    box = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    place = find_place(region, np.zeros_like(region), box)
    if place is not None:
        top, left = place[0] - box[0] // 2, place[1] - box[1] // 2
        assert top >= 0 <= left
        part = region[top : top + box[0], left : left + box[1]]
        assert part.shape == box
        assert part.mean() >= 0.84
    elif box[0] <= height and box[1] <= width:
        assert region.mean() < 1


def test_names_are_written_where_there_is_room_and_do_not_overlap(monkeypatch):
    labels = np.zeros((300, 400), np.uint8)
    labels[:, 200:], labels[:4] = 1, 2
    boxes = []
    text = ImageDraw.ImageDraw.text

    def noted(draw, at, name, *args, **kwargs):
        font, stroke = args[1], kwargs["stroke_width"]
        boxes.append(draw.textbbox(at, name, font, anchor="mm", stroke_width=stroke))
        text(draw, at, name, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted)
    picture = Image.new("RGB", (400, 300))
    assert sorted(write_names(picture, labels, ["cat", "grass, lawn", "sky"], 14)) == ["cat", "grass, lawn"]
    (a, b) = boxes
    assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])
    assert all(left >= 0 <= top and right <= 400 and bottom <= 300 for left, top, right, bottom in boxes)


def test_of_synonyms_the_first_is_written():
    labels = np.zeros((300, 400), np.uint8)
    pictures = [Image.new("RGB", (400, 300)) for _ in range(2)]
    for picture, name in zip(pictures, ("grass", "grass, lawn")):
        write_names(picture, labels, [name], 14)
    assert ImageChops.difference(*pictures).getbbox() is None
    assert pictures[0].getbbox() is not None


def test_a_name_too_long_for_its_region_is_left_to_the_legend():
    labels = np.zeros((40, 60), np.uint8)
    assert write_names(Image.new("RGB", (60, 40)), labels, ["a name that goes on and on"], 14) == []


# Legends


@pytest.mark.parametrize("exact", [1 << 24, 4])
def test_areas_count_classes_and_what_is_ignored(exact, monkeypatch):
    monkeypatch.setattr("clearclip.visualize.labels.EXACT", exact)
    labels = np.array([[0, 0, 2], [255, 2, 2]])
    assert areas(labels, 3).tolist() == [2, 0, 3, 1]
    assert areas(np.where(labels == 255, 65535, labels), 300)[[0, 2, 255, 300]].tolist() == [2, 3, 0, 1]


def test_legend_lists_classes_by_area():
    panel = legend_panel(np.array([50, 0, 10, 20, 20]), ["a", "b", "c", "d"], size=16)
    tops = [np.flatnonzero(found(panel, blended(colour)).any(axis=1)) for colour in palette(4)]
    assert tops[1].size == 0
    assert tops[0][0] < tops[3][0] < tops[2][0]


def test_letters_that_no_font_has_become_the_number_of_their_class(monkeypatch):
    monkeypatch.setattr("clearclip.visualize.text.FONTS", ())
    counts = np.array([1, 1, 0])
    foreign = legend_panel(counts, ["\u732b", "sky"])
    assert foreign.tobytes() == legend_panel(counts, ["class 0", "sky"]).tobytes()
    assert foreign.tobytes() != legend_panel(counts, ["\u7a7a", "cat"]).tobytes()
    labels = np.zeros((300, 400), np.uint8)
    pictures = [overlay(grey(300, 400), labels, [name], legend=False) for name in ("\u732b", "class 0")]
    assert pictures[0].tobytes() == pictures[1].tobytes()


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (40, 2000), (300, 400)])
def test_legend_of_171_classes_stays_readable(shape):
    names = [f"class {i} with a name that goes on and on for ever" for i in range(171)]
    labels = np.arange(shape[0] * shape[1]).reshape(shape) % 171
    picture = overlay(grey(*shape), labels, names)
    assert picture.width < shape[1] + 2200
    assert picture.height < shape[0] + 9000
    legend = np.array(picture)
    legend[: shape[0], : shape[1]] = 255
    colours, counts = np.unique(legend.reshape(-1, 3), axis=0, return_counts=True)
    swatches = {tuple(colour) for colour, count in zip(colours, counts) if count >= 100}
    assert len(swatches & set(map(tuple, blended(palette(171))))) == len(np.unique(labels))


# Heat maps


def test_heat_maps_show_values_between_their_limits():
    values = np.array([[0.0, 1.0], [0.5, np.nan]])
    picture = np.asarray(heat_map(grey(80, 80), values, bar=False, smooth=False)).astype(int)
    for (y, x), level in (((10, 10), 0), ((10, 70), 255), ((70, 10), 128)):
        expected = HEAT_OPACITY * VIRIDIS[level] + (1 - HEAT_OPACITY) * GREYS[100]
        np.testing.assert_allclose(picture[y, x], expected, atol=1.5)
    np.testing.assert_array_equal(picture[70, 70], [GREYS[100]] * 3)
    clipped = np.asarray(heat_map(grey(80, 80), values, limits=(1, 2), bar=False, smooth=False)).astype(int)
    np.testing.assert_allclose(clipped[10, 70], HEAT_OPACITY * VIRIDIS[0] + (1 - HEAT_OPACITY) * GREYS[100], atol=1.5)


def test_heat_maps_are_smooth_marked_and_have_a_bar():
    values = np.arange(4.0).reshape(2, 2)
    plain, marked = (heat_map(grey(60, 90), values, marker=marker, bar=False) for marker in (None, (0.5, 0.25)))
    changed = np.argwhere((np.asarray(plain) != np.asarray(marked)).any(axis=-1))
    assert np.abs(changed.mean(axis=0) - (30, 22.5)).max() < 1
    assert heat_map(grey(60, 90), values).height > 60
    assert len(np.unique(np.asarray(plain).reshape(-1, 3), axis=0)) > 20


@pytest.mark.parametrize("table", [VIRIDIS, INFERNO])
def test_heat_colours_grow_lighter_evenly(table):
    steps = np.diff(oklab(table)[:, 0])
    assert steps.min() > -0.002
    assert np.linalg.norm(np.diff(oklab(table)[::8], axis=0), axis=1).max() < 0.08


@pytest.mark.parametrize(
    ("values", "limits", "message"),
    [
        (np.zeros(4), None, r"needs finite values \[h, w\], not \[4\]"),
        (np.full((2, 2), np.nan), None, "needs finite values"),
        (np.zeros((2, 2)), (1, 0), "limits of a heat map must be a least and a largest value, not 1 and 0"),
    ],
)
def test_what_is_no_heat_is_refused(values, limits, message):
    with pytest.raises(UserError, match=message):
        heat_map(grey(4, 4), values, limits=limits)


# Errors


def test_errors_are_wrong_where_the_truth_is_known():
    truth = np.full((60, 90), 255)
    truth[:, 30:60], truth[:, 60:] = 0, 1
    labels = np.ones((60, 90), int)
    labels[40:, 60:] = 255  # no class
    picture = np.asarray(error_map(grey(60, 90), truth, labels, 2, legend=False)).astype(int)
    np.testing.assert_array_equal(picture[20, 10], [GREYS[100]] * 3)
    for (y, x), colour in (((20, 45), WRONG), ((20, 75), RIGHT), ((50, 75), WRONG)):
        np.testing.assert_allclose(picture[y, x], OPACITY * np.array(colour) + (1 - OPACITY) * GREYS[100], atol=1.5)
    assert difference(np.array([RIGHT], float), np.array(WRONG, float))[0] > 0.2


# Sheets


def test_sheet_shows_every_picture_unchanged():
    red, green, blue = (np.full((20 + 10 * i, 30, 3), np.eye(3)[i] * 255, np.uint8) for i in range(3))
    picture = sheet([[("image", red), ("truth", green)], [("image", blue)], [("", Image.fromarray(red))]])
    sizes = {tuple(colour): int(found(picture, colour).sum()) for colour in np.eye(3, dtype=int) * 255}
    assert sizes == {(255, 0, 0): 1200, (0, 255, 0): 900, (0, 0, 255): 1200}
    first, second = (np.nonzero(found(picture, colour))[1] for colour in ((255, 0, 0), (0, 255, 0)))
    assert first.max() < second.min()


def test_sheets_wrap_at_three_columns():
    assert [columns_of(count) for count in range(1, 10)] == [1, 2, 3, 2, 3, 3, 3, 3, 3]
    cells = [(f"{i}", grey(30, 100, 10 + i)) for i in range(7)]
    picture = sheet([cells])
    places = [np.argwhere(found(picture, [10 + i] * 3))[0] for i in range(7)]
    assert picture.width < 4 * 100
    assert [place[0] for place in places] == sorted(place[0] for place in places)
    assert len({place[1] for place in places}) == 3


def test_sheet_repeats_titles_only_where_they_change():
    row = [("image", grey(20, 60)), ("truth", grey(20, 60))]
    one, two = sheet([row]), sheet([row, row])
    other = sheet([row, [("image", grey(20, 60)), ("CLIP", grey(20, 60))]])
    assert two.height - one.height < 20 + 15
    assert other.height > two.height


def test_sheet_makes_room_for_titles():
    narrow = sheet([[("a title", grey(5, 2)), ("b", grey(5, 2))]])
    assert narrow.width > 50
    assert sheet([[("a", grey(5, 2))]], heading="a long heading").width > 90
    with pytest.raises(UserError, match="at least one picture"):
        sheet([[], []])


def test_comparisons_are_drawn_at_the_width_of_the_sheet():
    labels = np.zeros((900, 1500), np.uint8)
    picture = compare(grey(900, 1500), {"CLIP": labels, "ClearCLIP": labels}, ["a"], width=600)
    assert 560 <= picture.width <= 620
    small = compare(grey(90, 150), {"CLIP": labels[:90, :150]}, ["a"], original="")
    assert small.width < 180


# Files


@pytest.mark.parametrize(
    ("classes", "mode", "values"),
    [(3, "P", [0, 2, 255]), (255, "P", [0, 254, 255]), (256, "I;16", [0, 255, 65535]), (1000, "I;16", [7, 999])],
)
def test_label_maps_are_read_back(tmp_path, classes, mode, values):
    labels, names = np.resize(np.array(values), (7, 5)), [f"\u732b {i}" for i in range(classes)]
    path = tmp_path / "new" / "labels.png"
    save_label_map(labels, path, names, info={"method": "ClearCLIP"})
    with Image.open(path) as saved:
        assert saved.mode == mode
        np.testing.assert_array_equal(np.array(saved), labels)
        if mode == "P":
            colours = np.array(saved.getpalette()).reshape(-1, 3)
            np.testing.assert_array_equal(colours[:classes], palette(classes))
    legend = read_legend(path)
    assert [one["name"] for one in legend["classes"]] == names
    assert legend["classes"][values[0]]["pixels"] == (labels == values[0]).sum()
    assert (legend["method"], legend["ignored"], legend["size"]) == ("ClearCLIP", ignored(classes), [5, 7])


def test_a_file_without_legend_is_said(tmp_path):
    Image.fromarray(grey(3, 3)).save(tmp_path / "plain.png")
    with pytest.raises(UserError, match=r"plain\.png has no legend inside"):
        read_legend(tmp_path / "plain.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"broken\.png cannot be read as a label map"):
        read_legend(tmp_path / "broken.png")


@pytest.mark.parametrize("words", ["", "hello", "[]", "5", "[" * 100_000], ids=len)
def test_a_damaged_legend_is_said(tmp_path, words):
    text = PngInfo()
    text.add_itxt("clearclip legend", words)
    Image.fromarray(grey(3, 3)).save(tmp_path / "labels.png", pnginfo=text)
    with pytest.raises(UserError, match=r"the legend inside .*labels\.png is damaged"):
        read_legend(tmp_path / "labels.png")


def test_a_label_map_that_would_fill_the_memory_or_wait_is_no_label_map(tmp_path):
    text = PngInfo()
    text.add_text("clearclip legend", "a" * 2_000_000, zip=True)  # Pillow unpacks no more than a million
    Image.fromarray(grey(3, 3)).save(tmp_path / "bomb.png", pnginfo=text)
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    packed = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("bomb", "huge", "pipe"):  # of a huge one no pixel is read, so that its size is no matter
        with pytest.raises(UserError, match=rf"{name}\.png (cannot be read as a label map|has no legend inside)"):
            read_legend(tmp_path / f"{name}.png")


def test_label_map_with_an_unknown_class_is_not_written(tmp_path):
    with pytest.raises(UserError, match="label 5 has no name: there are 5 classes, and 255 is ignored"):
        save_label_map(np.full((3, 3), 5), tmp_path / "labels.png", list("abcde"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("suffix", "format"), [(".png", "PNG"), ("", "PNG"), (".JPG", "JPEG"), (".webp", "WEBP")])
def test_pictures_are_written_as_their_suffix_says(tmp_path, suffix, format):
    path = tmp_path / f"picture{suffix}"
    save_picture(Image.fromarray(grey(30, 40)), path, {"clearclip": "\u732b"})
    with Image.open(path) as saved:
        assert (saved.format, saved.size) == (format, (40, 30))
        saved.load()
        assert saved.info.get("clearclip") == ("\u732b" if format == "PNG" else None)
    assert Image.open(io.BytesIO(encode_picture(Image.fromarray(grey(3, 4)), format))).format == format


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"pictures are written as \.png, \.jpg or \.webp, not as \.gif"):
        save_picture(Image.fromarray(grey(3, 4)), tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())


def test_import_is_light():
    code = "import sys, clearclip.visualize; print({'torch', 'matplotlib', 'mmseg'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
