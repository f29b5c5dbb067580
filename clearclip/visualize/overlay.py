"""An image with each class in its colour: the photograph grey, thin outlines, names on regions, a legend."""

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from clearclip.errors import UserError
from clearclip.visualize.canvas import Picture, paste, shown_shape, shrink, text_size, to_rgb
from clearclip.visualize.colours import OPACITY, palette
from clearclip.visualize.labels import areas, check_labels, ignored
from clearclip.visualize.legend import legend_panel
from clearclip.visualize.names import write_names

GREYS = np.round(55 + 0.75 * np.arange(256)).clip(0, 255).astype(np.uint8)  # of the photograph, flatter than it was
OUTLINE = 0.45  # lightness of an outline to that of its colour


def overlay(
    image: Picture,
    labels: np.ndarray,
    names: Sequence[str],
    legend: bool = True,
    *,
    colours: np.ndarray | None = None,
    write: bool = True,
    columns: int = 1,
    max_side: int | None = None,
    nothing: str = "no class",
) -> Image.Image:
    """The image in grey with each class in its colour, outlined and named, and a legend of the classes that occur.

        overlay("cat.jpg", result.labels, result.names, max_side=1600).save("overlay.png")

    Args:
        image: [H, W, 3] or [H, W], uint8, a PIL image or a file.
        labels: [H, W], integers that index `names`; ignored pixels (see `ignored`) stay grey.
        names: of all classes.
        legend: names and shares of the classes, at the right or below, whichever gives the smaller picture.
        colours: [C, 3], uint8, by default those of `palette`; a benchmark has its own.
        write: names stand on their regions, where there is room for them.
        columns: of the sheet that the picture will be part of; with more than one the legend is always below.
        max_side: the picture is made smaller where its longer side, without the legend, is more. Shares are of all
            pixels.
        nothing: what the legend calls ignored pixels.

    Raises UserError where shapes or labels do not fit.
    """
    pixels, labels = to_rgb(image), check_labels(labels, len(names))
    if pixels.shape[:2] != labels.shape:
        sizes = ["×".join(map(str, shape)) for shape in (labels.shape, pixels.shape[:2])]
        raise UserError(f"labels of {sizes[0]} pixels do not fit an image of {sizes[1]}: resize one of them")
    colours = palette(len(names)) if colours is None else np.asarray(colours, np.uint8)
    counts = areas(labels, len(names))

    shape = shown_shape(labels.shape, max_side)
    shown, small = shrink(labels, shape, smooth=False), shrink(pixels, shape)
    size = text_size(shape, columns)
    picture = Image.fromarray(paint(small, shown, colours))
    if write:
        write_names(picture, shown, names, size)
    if not legend:
        return picture
    wide = legend_panel(counts, names, size, colours, max_width=shape[1], nothing=nothing)
    if columns > 1:
        return paste([(picture, 0, 0), (wide, 0, shape[0])])
    tall = legend_panel(counts, names, size, colours, max_height=shape[0], nothing=nothing)
    right = (shape[1] + tall.width) * max(shape[0], tall.height)
    below = max(shape[1], wide.width) * (shape[0] + wide.height)
    return paste([(picture, 0, 0), (tall, shape[1], 0) if right <= below else (wide, 0, shape[0])])


def greyed(pixels: np.ndarray) -> np.ndarray:
    """A photograph [H, W, 3] in greys that let colours speak: [H, W], uint8."""
    return cv2.LUT(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), GREYS)


def paint(pixels: np.ndarray, labels: np.ndarray, colours: np.ndarray, outlined: bool = True) -> np.ndarray:
    """A photograph [H, W, 3] in grey with its labels [H, W] in their colours: [H, W, 3], uint8."""
    grey = cv2.cvtColor(greyed(pixels), cv2.COLOR_GRAY2RGB)
    labelled = (labels != ignored(len(colours))).astype(np.uint8)
    table = np.zeros((ignored(len(colours)) + 1, 3), np.uint8)
    table[: len(colours)] = colours
    tint = np.take(table, labels, axis=0)
    if outlined:
        edge = outlines(labels)
        dark = (table * OUTLINE).astype(np.uint8)
    painted = cv2.addWeighted(tint, OPACITY, grey, 1 - OPACITY, 0)
    if outlined:
        painted[edge] = dark[labels[edge]]
    cv2.copyTo(grey, 1 - labelled, painted)
    return painted


def outlines(labels: np.ndarray) -> np.ndarray:
    """[H, W] bool: a line along the borders between labels, one pixel wide, and more where pictures are large."""
    width = 1 + max(1, round(max(labels.shape) / 1000))
    kernel = np.ones((width, width), np.uint8)
    return cv2.dilate(labels, kernel) != cv2.erode(labels, kernel)
