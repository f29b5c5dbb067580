"""Names on their regions: where there is room for them, and how they stay readable there."""

import math
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from clearclip.visualize.canvas import INK, PAPER, shown_shape, shrink
from clearclip.visualize.labels import areas
from clearclip.visualize.text import writable

SEARCHED_SIDE = 400  # pixels of the map in which places are looked for
INSIDE = 0.85  # share of a name's box that must be in its region
SMALLEST_REGION = 0.004  # share of the picture: less is not named
REPEATED = 0.35  # another region of a class is named too where it has this share of the largest


def write_names(picture: Image.Image, labels: np.ndarray, names: Sequence[str], size: int) -> list[str]:
    """Write the names of classes, `size` pixels high, upon their regions in labels [H, W] where there is room for them.

    No two overlap. Of synonyms the first is written. Returns the names that were written, each as often as it was.
    """
    draw, written = ImageDraw.Draw(picture), []
    stroke = max(1, round(size / 7))
    shape = shown_shape(labels.shape, SEARCHED_SIDE)
    scale = shape[0] / labels.shape[0], shape[1] / labels.shape[1]
    small = shrink(labels, shape, smooth=False)
    taken = np.zeros(shape, np.uint8)
    for label, region in _regions(small, len(names)):
        name, font = writable(names[label].partition(",")[0].strip(), label, size)  # of synonyms the first
        left, top, right, bottom = draw.textbbox((0, 0), name, font, anchor="mm", stroke_width=stroke)
        box = math.ceil((bottom - top + size) * scale[0]), math.ceil((right - left + size) * scale[1])
        place = find_place(region, taken, box)
        if place is None:
            continue
        y, x = place
        y0, x0 = y - box[0] // 2, x - box[1] // 2
        taken[max(0, y0) : y0 + box[0], max(0, x0) : x0 + box[1]] = 1
        at = (x + 0.5) / scale[1], (y + 0.5) / scale[0]
        draw.text(at, name, INK, font, anchor="mm", stroke_width=stroke, stroke_fill=PAPER)
        written.append(names[label])
    return written


def _regions(labels: np.ndarray, num_classes: int) -> Iterator[tuple[int, np.ndarray]]:
    """Connected regions [H, W], uint8, large enough to be named, with their labels, the largest first."""
    found = []
    for label in np.flatnonzero(areas(labels, num_classes)[:-1]).tolist():
        mask = (labels == label).astype(np.uint8)
        _, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        sizes = stats[1:, cv2.CC_STAT_AREA]
        for part in np.flatnonzero(sizes >= max(SMALLEST_REGION * labels.size, REPEATED * sizes.max())):
            found.append((int(sizes[part]), label, (parts == part + 1).astype(np.uint8)))
    yield from ((label, region) for _, label, region in sorted(found, key=lambda one: -one[0]))


def find_place(region: np.ndarray, taken: np.ndarray, box: tuple[int, int]) -> tuple[int, int] | None:
    """Where the centre (y, x) of a box (h, w) goes that is to lie in a region [H, W] of 0 and 1, and upon nothing that
    is `taken` [H, W]: as deep inside as can be. None where there is no room."""
    height, width = region.shape
    h, w = box
    if h > height or w > width:
        return None
    inside, covered = (
        cv2.boxFilter(one, cv2.CV_32F, (w, h), borderType=cv2.BORDER_CONSTANT) for one in (region, taken)
    )
    free = covered * h * w < 0.5
    within = np.zeros(region.shape, bool)  # the box is in the picture
    within[h // 2 : height - (h - 1) // 2, w // 2 : width - (w - 1) // 2] = True
    depth = cv2.distanceTransform(np.pad(region, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    worth = np.where(free & within & (inside >= INSIDE), inside + depth / max(1.0, float(depth.max())), -1)
    best = int(worth.argmax())
    return None if worth.flat[best] < 0 else divmod(best, width)
