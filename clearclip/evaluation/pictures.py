"""Pictures of what an evaluation saw: image, ground truth, prediction and errors, with the IoU of each class."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clearclip.errors import UserError
from clearclip.visualize import areas, error_map, ignored, legend_panel, overlay, palette, save_picture, sheet
from clearclip.visualize.canvas import paste, shown_shape, shrink, text_size
from clearclip.visualize.sheet import Cell

NOTE = "clearclip"  # the PNG's text that says of which run it is
LOOK = 2  # counts the ways in which pictures were drawn: those of another are drawn anew
COLUMNS = 2
MAX_SIDE = 1200  # pixels of each of the four pictures


class Pictures:
    """PNG files in `folder`, laid out as the images are in theirs; each says which run it shows, by its `key`.

    One that cannot be drawn or written costs no evaluation: that is said once. `colours` [C, 3] are the benchmark's
    own, by default `palette`'s; `ignore_index` is the label of the ground truth that counts nowhere.
    """

    def __init__(
        self,
        folder: Path,
        images: str | Path,
        names: Sequence[str],
        key: str = "",
        colours: np.ndarray | None = None,
        ignore_index: int | None = None,
    ):
        self.folder, self.images, self.names, self.note = folder, images, names, f"{key} look {LOOK}"
        self.colours = palette(len(names)) if colours is None else colours
        self.ignore_index = ignored(len(names)) if ignore_index is None else ignore_index
        self.said = False

    def path(self, image: str | Path) -> Path:
        """Where the picture of an image file goes; the file's own suffix stays, unless it is .jpg as everywhere."""
        inside = Path(os.path.relpath(image, self.images))
        return self.folder / (inside.with_suffix(".png") if inside.suffix == ".jpg" else f"{inside}.png")

    def has(self, image: str | Path) -> bool:
        """Whether the picture is there and shows this run."""
        try:
            with Image.open(self.path(image)) as picture:
                return picture.info.get(NOTE) == self.note
        except Exception:  # what a damaged file raises has no common base in Pillow
            return False

    def save(self, image: str | Path, rgb: np.ndarray, truth: np.ndarray, labels: np.ndarray) -> None:
        """Draw and write the picture of an image file: `rgb` [H, W, 3], `truth` and `labels` [H, W]."""
        path = self.path(image)
        try:
            self._save(path, rgb, truth, labels)
        except (OSError, UserError, MemoryError) as error:
            if not self.said:
                print(f"no picture {path} ({error}); the evaluation goes on", file=sys.stderr)
            self.said = True

    def _save(self, path: Path, rgb: np.ndarray, truth: np.ndarray, labels: np.ndarray) -> None:
        truth = np.where(truth == self.ignore_index, ignored(len(self.names)), truth)
        picture = draw(rgb, truth, labels, self.names, self.colours, title=path.stem)
        save_picture(picture, path, {NOTE: self.note})


def draw(
    rgb: np.ndarray, truth: np.ndarray, labels: np.ndarray, names: Sequence[str], colours: np.ndarray, title: str
) -> Image.Image:
    """Image, ground truth, prediction and errors in two rows, mIoU above them and each class's IoU below.

    rgb [H, W, 3], uint8; truth, labels [H, W], integers, of which `ignored(len(names))` has no class.
    """
    iou = class_iou(truth, labels, len(names))
    shown: dict[str, Any] = dict(colours=colours, columns=COLUMNS, max_side=MAX_SIDE)
    shape = shown_shape(rgb.shape, MAX_SIDE)
    cells: list[Cell] = [
        ("image", shrink(rgb, shape)),
        ("ground truth", overlay(rgb, truth, names, False, **shown)),
        ("prediction", overlay(rgb, labels, names, False, **shown)),
        ("errors", error_map(rgb, truth, labels, len(names), columns=COLUMNS, max_side=MAX_SIDE)),
    ]
    panels = sheet([cells], heading=f"{title}: {_summary(truth, labels, iou)}")
    true, predicted = areas(truth, len(names)), areas(labels, len(names))
    notes = [
        f"IoU {'–' if np.isnan(one) else f'{one:.1f}'}, {t:.1%} true, {p:.1%} predicted"
        for one, t, p in zip(iou, true / truth.size, predicted / labels.size)
    ]
    size = text_size(shape, COLUMNS)
    counts = np.append((true + predicted)[:-1], 0)
    table = legend_panel(counts, names, size, colours, max_width=panels.width, notes=notes)
    return paste([(panels, 0, 0), (table, 0, panels.height)])


def _summary(truth: np.ndarray, labels: np.ndarray, iou: np.ndarray) -> str:
    known = truth != ignored(len(iou))
    if not known.any():
        return "no labelled pixel"
    return f"mIoU {np.nanmean(iou):.1f}, {(labels == truth)[known].mean():.1%} of pixels right"


def class_iou(truth: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """IoU of each class in one image, in percent: [C], NaN where it is neither true nor predicted.

    truth, labels [H, W]; pixels that the truth ignores count nowhere.
    """
    known = (truth >= 0) & (truth < num_classes)
    true, predicted = truth[known].astype(np.int64), labels[known].astype(np.int64)
    hit = np.bincount(true[true == predicted], minlength=num_classes)
    predicted = predicted[(predicted >= 0) & (predicted < num_classes)]
    union = np.bincount(true, minlength=num_classes) + np.bincount(predicted, minlength=num_classes) - hit
    return 100 * np.divide(hit, union, out=np.full(num_classes, np.nan), where=union > 0)


def own_colours(metainfo: Mapping[str, Any]) -> np.ndarray | None:
    """The colours [C, 3], uint8, in which a benchmark is usually shown; None where MMSegmentation made them up."""
    colours = np.asarray(metainfo.get("palette", []))
    made_up = np.random.RandomState(42).randint(0, 255, size=(len(metainfo["classes"]), 3))
    if colours.shape != made_up.shape or (colours == made_up).all():
        return None
    return colours.astype(np.uint8)
