"""What reads the files of a data set: steps of its pipeline that name the file which would spoil a run."""

import sys
from collections.abc import Sequence
from pathlib import Path

import clearclip.evaluation.mmcv_ext  # noqa: F401, before mmseg is imported

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS
from PIL import Image

from clearclip.errors import UserError, one_line
from clearclip.images import LOSSY, orientation, read_image, read_stored

REMEDY = "convert it again, see datasets/README.md"


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """`img_path` to `img`, BGR uint8 [H, W, 3], the order of channels in MMSegmentation's pipelines.

    A picture with an EXIF orientation is turned by it, unless its label map is of the pixels as they are stored: where
    the two sizes do not tell, as with a picture upside down, it is. That is said once. Raises UserError for a file
    that is no picture.
    """

    def __init__(self) -> None:
        self.said = torch.zeros(1, dtype=torch.bool).share_memory_()  # one for all workers of a loader

    def transform(self, results: dict) -> dict:
        path, label_map = results["img_path"], results.get("seg_map_path")
        stored = counts_as_stored(path, label_map)
        if stored:
            self._say(path)
        image = read_stored(path) if stored else read_image(path)
        results["as_stored"] = stored
        results["img"] = image[..., ::-1]
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results

    def _say(self, path: str) -> None:
        if not self.said:
            self.said[0] = True
            print(f"{path} has an EXIF orientation, its label map has not: pixels count as stored", file=sys.stderr)


def counts_as_stored(path: str | Path, label_map: str | Path | None) -> bool:
    """Whether a picture with an EXIF orientation is not turned by it, for the sake of its label map."""
    return label_map is not None and orientation(path) != 1 and _is_stored(path, label_map)


def _is_stored(path: str | Path, label_map: str | Path) -> bool:
    """Whether a label map is of a turned picture's pixels as stored, not as shown."""
    try:
        with Image.open(path) as image, Image.open(label_map) as labels:
            return not (labels.size == image.size[::-1] != image.size)
    except Exception:  # LoadLabels says what is wrong with it
        return False


@TRANSFORMS.register_module()
class LoadLabels(BaseTransform):
    """`seg_map_path` to `gt_seg_map`, integers [H, W]: label maps of 8, 16 or 32 bits, with or without a palette.

    `values`, which come first, are labels for what the files hold: `[1, 0]` makes 1 of 0 and 0 of 1. The ignored label
    stays, and any other value ends the evaluation.
    `reduce_zero_label` of the data set makes 0 the ignored label and 1, 2, … the classes 0, 1, …; its `label_map`
    renames classes, as MMSegmentation has it. Raises UserError, naming the file, for what cannot be read, for
    pictures in colour and fractions, and for a label map of another size than its image. A label that is no class is
    found by `ClassIoUMetric`, which counts them anyway.
    """

    def __init__(self, ignore_index: int = 255, values: Sequence[int] | None = None):
        self.ignore_index, self.values = ignore_index, values

    def transform(self, results: dict) -> dict:
        path = results["seg_map_path"]
        labels = read_labels(path)
        if "ori_shape" in results and labels.shape != results["ori_shape"]:
            sizes = ("x".join(map(str, shape)) for shape in (labels.shape, results["ori_shape"]))
            raise UserError("label map {} is {}, its image {}; {}".format(path, *sizes, REMEDY))
        if self.values is not None:
            labels = self._translated(labels, self.values, path)
        if results.get("reduce_zero_label"):
            labels = labels.astype(np.int64)
            labels = np.where((labels == 0) | (labels == self.ignore_index), self.ignore_index, labels - 1)
        if results.get("label_map"):
            labels = self._rename(labels, results["label_map"])
        results["gt_seg_map"] = labels
        results.setdefault("seg_fields", []).append("gt_seg_map")
        return results

    def _translated(self, labels: np.ndarray, values: Sequence[int], path: str) -> np.ndarray:
        beyond = labels[(labels >= len(values)) & (labels != self.ignore_index)]
        if beyond.size:
            raise UserError(f"label map {path} has the value {beyond[0]}, for which the config has no label; {REMEDY}")
        ignored = labels == self.ignore_index
        return np.where(ignored, self.ignore_index, np.asarray(values)[np.where(ignored, 0, labels)])

    def _rename(self, labels: np.ndarray, label_map: dict[int, int]) -> np.ndarray:
        if self.ignore_index != 255:
            raise UserError("metainfo.classes that leave out classes of the data set need ignore_index=255")
        renamed = labels.copy()
        for old, new in label_map.items():
            renamed[labels == old] = new
        return renamed


def read_labels(path: str | Path) -> np.ndarray:
    """A label map as it is stored, integers [H, W]. Raises UserError where it is none."""
    try:
        with Image.open(path) as image:
            lossy = image.format in LOSSY or image.info.get("compression") == "jpeg"  # the latter of a TIFF
            labels = np.array(image)
    except Exception as error:  # what a damaged file raises has no common base in Pillow
        raise UserError(f"cannot read label map {path} ({one_line(error)}); {REMEDY}") from error
    if lossy:
        raise UserError(f"label map {path} is compressed with losses, which alter labels; {REMEDY}")
    if labels.ndim != 2:
        raise UserError(f"label map {path} is a picture in colour, where one label a pixel is wanted; {REMEDY}")
    if labels.dtype.kind not in "uib":
        raise UserError(f"label map {path} holds fractions ({labels.dtype}), where whole labels are wanted; {REMEDY}")
    return labels.astype(np.uint8) if labels.dtype.kind == "b" else labels
