"""Heat maps: how well each place fits a phrase, with a colour bar and the range of the scores."""

import math

import cv2
import numpy as np
from PIL import Image, ImageDraw

from clearclip.errors import UserError
from clearclip.visualize.canvas import INK, PAPER, Picture, paste, shown_shape, shrink, text_size, to_rgb
from clearclip.visualize.colours import MEAN_GREY, VIRIDIS
from clearclip.visualize.overlay import greyed
from clearclip.visualize.text import find_font

HEAT_OPACITY = 0.75


def heat_map(
    image: Picture,
    values: np.ndarray,
    *,
    limits: tuple[float, float] | None = None,
    marker: tuple[float, float] | None = None,
    colours: np.ndarray = VIRIDIS,
    bar: bool = True,
    smooth: bool = True,
    columns: int = 1,
    max_side: int | None = None,
) -> Image.Image:
    """The image in grey under values in colour, and below it a colour bar with their range.

        one = segmenter("cat.jpg", ["cat", "grass"], scores=True)
        heat_map("cat.jpg", one.scores[0], limits=(0, 1), max_side=1200)

    Args:
        image: [H, W, 3] or [H, W], uint8, a PIL image or a file.
        values: [h, w] scores, attention or cosines, of any size: pixels or patches. NaN stays grey.
        limits: the values that have the first and the last colour, by default the least and largest there are. Maps
            to be compared should share them.
        marker: (y, x) in shares of height and width, of a cross where the chosen patch is.
        colours: [256, 3], uint8; VIRIDIS, INFERNO or another perceptually uniform table.
        bar: with the colour bar.
        smooth: patches are interpolated; else they are squares.
        columns, max_side: as in `overlay`.

    Raises UserError for values that are no [h, w] and limits that are no range.
    """
    values = np.asarray(values, np.float32)
    if values.ndim != 2 or not np.isfinite(values).any():
        raise UserError(f"a heat map needs finite values [h, w], not {list(values.shape)}")
    low, high = limits or (float(np.nanmin(values)), float(np.nanmax(values)))
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UserError(f"limits of a heat map must be a least and a largest value, not {low} and {high}")
    pixels = to_rgb(image)
    shape = shown_shape(pixels.shape, max_side)
    grey = cv2.cvtColor(greyed(shrink(pixels, shape)), cv2.COLOR_GRAY2RGB)

    scaled: np.ndarray = (values - low) / ((high - low) or 1)
    way = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST
    if scaled.shape[0] > shape[0]:
        way = cv2.INTER_AREA
    scaled = cv2.resize(scaled, shape[::-1], interpolation=way)
    known = np.isfinite(scaled)
    levels = np.round(255 * np.where(known, scaled, 0).clip(0, 1)).astype(np.uint8)
    painted = cv2.addWeighted(colours[levels], HEAT_OPACITY, grey, 1 - HEAT_OPACITY, 0)
    painted[~known] = grey[~known]
    picture = Image.fromarray(painted)
    size = text_size(shape, columns)
    if marker is not None:
        _mark(picture, marker, size)
    if not bar:
        return picture
    return paste([(picture, 0, 0), (colour_bar(low, high, shape[1], size, colours), 0, shape[0])])


def colour_bar(low: float, high: float, width: int, size: int, colours: np.ndarray = VIRIDIS) -> Image.Image:
    """The colours of a heat map as they look upon it, between its least and largest value."""
    font, gap = find_font(size, "0123456789.-e"), size // 2
    texts = [_number(low, high - low), _number(high, high - low)]
    panel = Image.new("RGB", (width, size + 2 * gap), PAPER)
    draw = ImageDraw.Draw(panel)
    left = gap + math.ceil(font.getlength(texts[0])) + gap
    right = width - gap - math.ceil(font.getlength(texts[1])) - gap
    middle = panel.height / 2
    draw.text((gap, middle), texts[0], INK, font, anchor="lm")
    draw.text((width - gap, middle), texts[1], INK, font, anchor="rm")
    if right > left:
        strip = colours[np.linspace(0, 255, right - left).round().astype(int)]  # [w, 3]
        strip = np.round(HEAT_OPACITY * strip + (1 - HEAT_OPACITY) * MEAN_GREY).astype(np.uint8)
        panel.paste(Image.fromarray(np.tile(strip, (size, 1, 1))), (left, gap))
    return panel


def _number(value: float, span: float) -> str:
    """A value with as many digits as its range makes worth reading."""
    digits = 2 if span <= 0 else max(0, 2 - math.floor(math.log10(span)))
    return f"{value:.{digits}f}" if digits <= 5 else f"{value:.2e}"


def _mark(picture: Image.Image, marker: tuple[float, float], size: int) -> None:
    y, x = marker[0] * picture.height, marker[1] * picture.width
    draw, arm, line = ImageDraw.Draw(picture), 0.6 * size, max(1, size // 8)
    for colour, width in ((INK, 3 * line), (PAPER, line)):
        draw.line((x - arm, y, x + arm, y), colour, width)
        draw.line((x, y - arm, x, y + arm), colour, width)
