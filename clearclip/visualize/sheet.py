"""Pictures side by side, three in a row at most, with titles."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from clearclip.errors import UserError
from clearclip.visualize.canvas import INK, Picture, Placed, paste, shown_shape, shrink, text_size, to_rgb
from clearclip.visualize.overlay import overlay
from clearclip.visualize.text import find_font, shortened

COLUMNS = 3
SHEET_WIDTH = 2400  # twice what it is shown in, for screens of fine pixels
Cell = tuple[str, Picture]


def columns_of(count: int) -> int:
    """In how many columns so many pictures stand: 3 at most, and no row much shorter than the others."""
    return math.ceil(count / math.ceil(count / COLUMNS)) if count else 1


def compare(
    image: Picture,
    results: Mapping[str, np.ndarray],
    names: Sequence[str],
    *,
    colours: np.ndarray | None = None,
    original: str = "photograph",
    width: int = SHEET_WIDTH,
) -> Image.Image:
    """A photograph beside several segmentations of it, as a sheet at most `width` pixels wide.

        compare("cat.jpg", {"CLIP": one.labels, "ClearCLIP": two.labels}, ["cat", "grass"])

    `results` are labels [H, W] by title; `original` is the photograph's own title, "" leaves it out.
    """
    return sheet([comparison(image, results, names, original, width, colours)])


def comparison(
    image: Picture, results: Mapping[str, np.ndarray], names: Sequence[str], original: str, width: int,
    colours: np.ndarray | None = None,
) -> list[Cell]:  # fmt: skip
    """What `compare` shows, as a row of a `sheet`."""
    pixels = to_rgb(image)
    columns = columns_of(len(results) + bool(original))
    height, across = pixels.shape[:2]
    max_side = math.ceil(max(1, height / across) * width / columns * 0.98)
    draw: dict[str, Any] = dict(colours=colours, columns=columns, max_side=max_side)
    cells: list[Cell] = [(original, shrink(pixels, shown_shape(pixels.shape, max_side)))] if original else []
    cells += [(title, overlay(pixels, labels, names, **draw)) for title, labels in results.items()]
    return cells


def sheet(rows: Sequence[Sequence[Cell]], heading: str = "") -> Image.Image:
    """Rows of (title, picture) pairs as one picture; rows of more than three are broken into equal ones.

    Titles equal to those of the row above are not repeated. Pictures keep their pixels: draw them as large as they are
    to be shown. `heading` stands above all. Raises UserError where there is none.
    """
    cells = [[(shortened(title), Image.fromarray(to_rgb(picture))) for title, picture in row] for row in _wrapped(rows)]
    if not cells:
        raise UserError("a sheet needs at least one picture")
    columns = max(map(len, cells))
    widest = max(picture.width for row in cells for _, picture in row)
    size = round(1.15 * text_size((1, widest), columns))
    gap = size // 2
    font = _font(cells, heading, size)

    lefts = [gap]  # of each column, and of one more
    for column in range(columns):
        below = [row[column] for row in cells if column < len(row)]
        width = max(max(picture.width, math.ceil(font.getlength(title))) for title, picture in below)
        lefts.append(lefts[-1] + width + gap)
    pictures: list[Placed] = []
    captions: list[tuple[str, int, int]] = []
    above: list[str] = []
    y = gap
    if heading:
        captions.append((heading, gap, y))
        y += round(1.6 * size)
    for row in cells:
        titles = [title for title, _ in row]
        if titles != above and any(titles):
            captions += [(title, left, y) for title, left in zip(titles, lefts)]
            y += round(1.5 * size)
        above = titles
        pictures += [(picture, left, y) for (_, picture), left in zip(row, lefts)]
        y += max(picture.height for _, picture in row) + gap
    paper = paste(pictures, width=max(lefts[-1], gap + math.ceil(font.getlength(heading)) + gap), height=y)
    draw = ImageDraw.Draw(paper)
    for title, left, top in captions:
        draw.text((left, top), title, INK, font)
    return paper


def _font(cells: Sequence[Sequence[tuple[str, Image.Image]]], heading: str, size: int) -> Any:
    return find_font(size, heading + "".join(title for row in cells for title, _ in row))


def _wrapped(rows: Sequence[Sequence[Cell]]) -> Iterator[Sequence[Cell]]:
    for row in rows:
        step = columns_of(len(row))
        for start in range(0, len(row), step):
            yield row[start : start + step]
