"""Label maps as arrays and files: areas, what is ignored, and PNGs with palette and legend inside."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from clearclip.errors import UserError, one_line
from clearclip.paths import atomic_write, check_regular
from clearclip.visualize.canvas import encode_picture
from clearclip.visualize.colours import hexadecimal, palette

LEGEND = "clearclip legend"  # keyword of a label map's text
EXACT = 1 << 24  # of so many pixels OpenCV's counts, float32, are whole numbers


def ignored(num_classes: int) -> int:
    """The label of pixels without a class: 255, or 65535 where 255 is a class."""
    return 255 if num_classes <= 255 else 65535


def check_labels(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Labels [..., H, W] of any integers to uint8, or uint16 where there are more than 255 classes.

    Raises UserError for a label that is neither a class nor `ignored(num_classes)`.
    """
    labels = np.asarray(labels)
    if labels.ndim < 2 or not labels.size or labels.dtype.kind not in "iu":
        raise UserError(f"labels must be integers [H, W], not {labels.dtype} {list(labels.shape)}")
    nothing = ignored(num_classes)
    if labels.min() < 0 or labels.max() >= num_classes:
        wrong = labels[(labels != nothing) & ((labels < 0) | (labels >= num_classes))]
        if wrong.size:
            raise UserError(f"label {wrong[0]} has no name: there are {num_classes} classes, and {nothing} is ignored")
    return np.ascontiguousarray(labels, np.uint8 if nothing == 255 else np.uint16)


def areas(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels of each class in labels [..., H, W], and last of those ignored: [C + 1], int64."""
    flat, size = check_labels(labels, num_classes).reshape(-1, 1), ignored(num_classes) + 1
    parts = (flat[start : start + EXACT] for start in range(0, len(flat), EXACT))
    each = [cv2.calcHist([part], [0], None, [size], [0, size]).ravel().astype(np.int64) for part in parts]
    counts = np.sum(each, axis=0)
    return np.append(counts[:num_classes], counts[-1])


def save_label_map(
    labels: np.ndarray,
    path: str | Path,
    names: Sequence[str],
    colours: np.ndarray | None = None,
    info: Mapping[str, Any] | None = None,
) -> None:
    """Write labels [H, W] as a PNG: 8-bit with a palette up to 255 classes, else 16-bit grey.

    Its legend is inside, as PNG text (iTXt) that `read_legend` reads: names, colours and areas of the classes, and
    what else `info` says, such as method and weights. `colours` [C, 3], uint8, by default `palette`'s.
    Raises UserError for a label that is neither a class nor `ignored(len(names))`.

        save_label_map(result.labels, "cat_labels.png", result.names, info={"method": "ClearCLIP"})
        read_legend("cat_labels.png")["classes"][0]  # {"label": 0, "name": "cat", "colour": "#5a9cd6", …
    """
    labels = check_labels(labels, len(names))
    colours = palette(len(names)) if colours is None else np.asarray(colours, np.uint8)
    if labels.dtype == np.uint8:
        picture = Image.fromarray(labels)
        table = np.full((256, 3), 224, np.uint8)
        table[: len(names)] = colours
        picture.putpalette(table.tobytes())
    else:
        picture = Image.fromarray(labels)
    words = json.dumps(legend(labels, names, colours) | dict(info or {}), ensure_ascii=False)
    with atomic_write(path) as temporary:
        temporary.write_bytes(encode_picture(picture, text={LEGEND: words}))


def legend(labels: np.ndarray, names: Sequence[str], colours: np.ndarray | None = None) -> dict[str, Any]:
    """What a label map shows, for JSON: `classes`, a list of label, name, colour, pixels and area, the share of the
    picture; `ignored`, the label of the others; `size`, width and height."""
    colours = palette(len(names)) if colours is None else colours
    counts = areas(labels, len(names))
    classes = [
        dict(label=i, name=name, colour=hexadecimal(colours[i]), pixels=int(counts[i]),
             area=round(float(counts[i] / counts.sum()), 6))
        for i, name in enumerate(names)
    ]  # fmt: skip
    height, width = np.shape(labels)[-2:]
    return dict(classes=classes, ignored=ignored(len(names)), size=[width, height])


def read_legend(path: str | Path) -> dict[str, Any]:
    """What `save_label_map` wrote into a label map besides its labels. Raises UserError where there is nothing."""
    try:
        check_regular(path)
        with Image.open(path) as picture:
            words = picture.info.get(LEGEND)
    except Exception as error:  # what a damaged file raises has no common base in Pillow
        raise UserError(f"{path} cannot be read as a label map: {one_line(error)}") from error
    if words is None:
        raise UserError(f"{path} has no legend inside: it was not written by this program, or saved anew by another")
    try:
        found = json.loads(words)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"the legend inside {path} is damaged; write the label map again")
    return found
