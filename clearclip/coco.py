"""Label maps in COCO's format: a mask a class, as compressed run lengths that pycocotools reads.

A mask is read column by column; its runs of 0 and 1, beginning with 0, are counted. From the third on, counts are
written as the difference to the last of the same kind, in groups of 5 bits, the lowest first, of which bit 5 says that
another follows; each group is a letter from "0" on.
"""

from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

import numpy as np


class RunLengths(TypedDict):
    """A mask as COCO has it: `size` is [height, width]."""

    size: list[int]
    counts: str


def encode_mask(mask: np.ndarray) -> RunLengths:
    """A mask [H, W], bool, as compressed run lengths.

    encode_mask(np.array([[0, 1], [0, 1]], bool))  # {"size": [2, 2], "counts": "22"}
    """
    column = np.asarray(mask, bool).ravel(order="F")
    changes = np.flatnonzero(column[1:] != column[:-1]) + 1
    starts = [0] if column.size and column[0] else []  # a mask that begins with 1 has a run of no 0 before it
    counts = np.diff(np.concatenate([starts, [0], changes, [column.size]])).astype(np.int64)
    return RunLengths(size=[*map(int, np.shape(mask))], counts=_letters(counts.tolist()))


def _letters(counts: Sequence[int]) -> str:
    text = bytearray()
    for place, count in enumerate(counts):
        value = count - (counts[place - 2] if place > 2 else 0)
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)  # bit 4 of the last group is the sign
            text.append(48 + bits + 32 * more)
    return text.decode()


def box(mask: np.ndarray) -> list[int]:
    """The smallest box around a mask that is not empty: [left, top, width, height], in pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]


def categories(names: Sequence[str], classes: Iterable[int]) -> list[dict[str, Any]]:
    """COCO's categories for some of the classes: the id of a class is its label + 1."""
    return [dict(id=label + 1, name=names[label]) for label in classes]


def annotations(
    labels: np.ndarray, classes: Iterable[int], image_id: int = 1, first_id: int = 1
) -> list[dict[str, Any]]:
    """COCO's annotations of labels [H, W]: of each of the classes that is there one, of all its pixels."""
    masks = ((label, labels == label) for label in classes)
    found = ((label, mask) for label, mask in masks if mask.any())
    return [
        dict(
            id=number,
            image_id=image_id,
            category_id=label + 1,
            segmentation=encode_mask(mask),
            area=int(mask.sum()),
            bbox=box(mask),
            iscrowd=0,
        )
        for number, (label, mask) in enumerate(found, first_id)
    ]
