"""Pixel counts, ground truth × prediction, without their zeros: of one image, of many, and as bytes.

An image shows few of the classes that a benchmark has: of the 171 × 172 cells of COCO-Stuff about a hundred are not
zero. They make some 300 bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True, eq=False)
class Confusion:
    """The confusion matrix of one image, ground truth × prediction [C, C + 1].

    The last column is "no class": pixels whose prediction is none of the classes. Pixels that the ground truth
    ignores are in no cell. Raises ValueError for impossible counts.

    Attributes:
        classes: C.
        cells: int64 [K], ascending: truth · (C + 1) + prediction.
        counts: int64 [K], positive: pixels.
    """

    classes: int
    cells: np.ndarray
    counts: np.ndarray

    def __post_init__(self) -> None:
        for name in ("cells", "counts"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.int64))
        if problem := impossible(self.classes, self.cells, self.counts):
            raise ValueError(problem)

    @classmethod
    def of(cls, matrix: ArrayLike) -> "Confusion":
        """Of a matrix of integers [C, C + 1] or, where every pixel has a class, [C, C].

        >>> Confusion.of([[3, 0, 1], [0, 500, 0]]).counts
        array([  3,   1, 500])
        """
        pixels = np.asarray(matrix)
        classes = len(pixels)
        if pixels.dtype.kind not in "iu" or pixels.shape not in {(classes, classes), (classes, classes + 1)}:
            raise ValueError(f"expected integers [C, C] or [C, C + 1], not {pixels.dtype} {list(pixels.shape)}")
        truth, prediction = np.nonzero(pixels)
        return cls(classes, truth * (classes + 1) + prediction, pixels[truth, prediction])

    @classmethod
    def count(cls, truth: ArrayLike, labels: ArrayLike, classes: int, ignore_index: int = 255) -> "Confusion":
        """Of two label maps [H, W]. A prediction outside 0..C-1 is no class; a ground truth outside is a ValueError."""
        true, predicted = (np.asarray(values).astype(np.int64) for values in (truth, labels))
        if true.shape != predicted.shape:
            raise ValueError(f"ground truth {list(true.shape)} and prediction {list(predicted.shape)} differ in size")
        counted = true != ignore_index
        true, predicted = true[counted], predicted[counted]
        if len(true) and (true.min() < 0 or true.max() >= classes):
            raise ValueError(f"the ground truth holds labels {true.min()} to {true.max()} for {classes} classes")
        predicted = np.where((predicted < 0) | (predicted >= classes), classes, predicted)
        return cls(classes, *np.unique(true * (classes + 1) + predicted, return_counts=True))

    def dense(self) -> np.ndarray:
        """int64 [C, C + 1]."""
        matrix = np.zeros(self.classes * (self.classes + 1), np.int64)
        matrix[self.cells] = self.counts
        return matrix.reshape(self.classes, self.classes + 1)


@dataclass(frozen=True, eq=False)
class Confusions:
    """The confusion matrices of N images: count k is of the image `samples[image[k]]`.

    Attributes:
        samples: N sample ids.
        classes: C.
        image, truth, prediction, counts: int64 [K]; prediction C is "no class".
    """

    samples: Sequence[str]
    classes: int
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    counts: np.ndarray

    @classmethod
    def join(cls, parts: Sequence["Confusions"], samples: Sequence[str]) -> "Confusions":
        """Those of several lists of images as one, in the order of `samples`, all of which must be in a part."""
        place = {sample: index for index, sample in enumerate(samples)}
        image = [np.array([place[sample] for sample in part.samples], np.int64)[part.image] for part in parts]
        names = ("truth", "prediction", "counts")
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return cls(samples, parts[0].classes, np.concatenate(image), **joined)

    def __len__(self) -> int:
        return len(self.samples)

    def areas(self) -> np.ndarray:
        """int64 [N, 4, C]: pixels of intersection, union, prediction and truth, in MMSegmentation's order."""
        right, predicted = self.prediction == self.truth, self.prediction < self.classes
        intersection = self._sums(self.truth, right)
        prediction = self._sums(self.prediction, predicted)
        truth = self._sums(self.truth, slice(None))
        return np.stack([intersection, prediction + truth - intersection, prediction, truth], axis=1)

    def total(self) -> np.ndarray:
        """int64 [C, C + 1]: all images together."""
        total = np.zeros(self.classes * (self.classes + 1), np.int64)
        np.add.at(total, self.truth * (self.classes + 1) + self.prediction, self.counts)
        return total.reshape(self.classes, self.classes + 1)

    def _sums(self, label: np.ndarray, kept: np.ndarray | slice) -> np.ndarray:
        """int64 [N, C]: the counts that are `kept`, summed by image and label."""
        sums = np.zeros(len(self) * self.classes, np.int64)
        np.add.at(sums, self.image[kept] * self.classes + label[kept], self.counts[kept])
        return sums.reshape(len(self), self.classes)


def impossible(classes: int, cells: np.ndarray, counts: np.ndarray) -> str | None:
    """What is wrong with the cells [K] and counts [K] of an image; None where nothing is."""
    if cells.shape != counts.shape or cells.ndim != 1:
        return f"cells {list(cells.shape)} and counts {list(counts.shape)} must be two lists of one length"
    if len(cells) and (cells.min() < 0 or cells.max() >= classes * (classes + 1)):
        return f"cells {cells.min()} to {cells.max()} are not all in 0..{classes * (classes + 1) - 1}"
    if (np.diff(cells) <= 0).any():
        return "its cells are not ascending"
    if (counts <= 0).any():
        return f"a cell counts {counts.min()} pixels"
    return None


def encode(confusion: Confusion) -> bytes:
    """Two varints (LEB128) a cell, its distance from the one before and its count: equal counts, equal bytes."""
    distances = np.diff(confusion.cells, prepend=0)
    values = np.stack([distances, confusion.counts], axis=1).ravel()
    width = -(-int(values.max(initial=1)).bit_length() // 7)
    octets = values[:, None] >> 7 * np.arange(width)  # [2K, width]: seven bits each, the lowest first
    used = octets > 0
    used[:, 0] = True
    octets &= 127
    octets[:, :-1] |= used[:, 1:] * 128  # more follow
    return octets[used].astype(np.uint8).tobytes()


def decode(blobs: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All images at once: the number of the image, cell and count, int64 [K] each. ValueError for half a number.

    >>> decode([encode(Confusion.of([[3, 0], [0, 500]])), b"", encode(Confusion.of([[7]]))])
    (array([0, 0, 2]), array([0, 4, 0]), array([  3, 500,   7]))
    """
    data = np.frombuffer(b"".join(blobs), np.uint8)
    lengths = np.array([len(blob) for blob in blobs], np.int64)
    ends = np.cumsum(lengths)
    final = data < 128  # the last octet of a number
    numbers = np.diff(np.concatenate([[0], np.cumsum(final)])[ends], prepend=0)  # [N]
    if not final[ends[lengths > 0] - 1].all() or (numbers % 2).any():
        raise ValueError("its counts are cut short")
    stop = np.flatnonzero(final) + 1
    start = np.concatenate([[0], stop])[:-1]
    place = np.arange(len(data)) - np.repeat(start, stop - start)
    values = np.add.reduceat((data & 127).astype(np.int64) << 7 * place, start)
    distances, counts = values.reshape(-1, 2).T
    sizes = numbers // 2
    reached = np.concatenate([[0], np.cumsum(distances)])
    before = reached[np.cumsum(sizes) - sizes]  # [N]: where the images before have got to
    return np.repeat(np.arange(len(blobs)), sizes), reached[1:] - np.repeat(before, sizes), counts.copy()
