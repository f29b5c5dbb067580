"""Scores from the areas of single images, with bootstrap intervals, and the pieces of a report.

`areas` is int64 [N, 4, C] throughout: of each image and class the pixels of intersection, union, prediction and
truth, as `Run.areas` and MMSegmentation give them. Scores are percent.

    estimate = bootstrap(run.areas(samples))
    print(estimate.mIoU)                                              # 79.3 ± 1.9
    gain = paired(run.areas(samples), other.areas(samples))
    print(format_difference(gain.mIoU))                               # +0.4 ≈

An interval is that of the percentile bootstrap (B. Efron, Bootstrap Methods: Another Look at the Jackknife, Annals of
Statistics 7, 1979, https://doi.org/10.1214/aos/1176344552): images are drawn with replacement, as many as there are,
and scored anew; the middle 95 % of these scores is the interval.

What it tells: how much a score would move had other images been drawn from the same source. Of a subset, it tells
roughly where the score of the full benchmark lies, and does not take its place. What it does not tell: anything of
other data sets, of mistakes in labels, of prompts chosen on the same images, or of rounding and devices. Two
intervals that overlap do not make two methods equal: they share their images, and `paired` compares them on these. Of
a rare class a few images decide, so that its own interval, and mIoU's with few images, come out too narrow.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from clearclip.errors import UserError

INTERSECTION, UNION, PREDICTION, TRUTH = range(4)
BLOCK = 2**22  # draws held at a time: 32 MiB of weights

# Sums of areas [R, A, C] to four scores or their differences: mIoU, aAcc and mAcc [R] and IoU [R, C].
Measure: TypeAlias = Callable[[np.ndarray], tuple[np.ndarray, ...]]


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of a set of images, in percent; NaN where nothing counts.

    Attributes:
        mIoU: mean IoU over the classes that occur in the ground truth or the prediction.
        aAcc: share of right pixels.
        mAcc: mean over the classes of the ground truth of their share of right pixels.
        IoU: float64 [C], NaN for a class that does not occur.
    """

    mIoU: float
    aAcc: float
    mAcc: float
    IoU: np.ndarray


@dataclass(frozen=True)
class Interval:
    """A score, or a difference of scores, and where resampling puts it. NaN bounds: one image tells nothing.

    >>> print(Interval(79.31, 77.4, 81.2))
    79.3 ± 1.9
    """

    value: float
    low: float
    high: float
    level: float = 0.95

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        return format_score(self)


@dataclass(frozen=True)
class Estimate:
    """Scores with their intervals, or differences of scores with theirs. `IoU` has C intervals."""

    mIoU: Interval
    aAcc: Interval
    mAcc: Interval
    IoU: tuple[Interval, ...]
    images: int
    resamples: int


# --- scores -----------------------------------------------------------------------------------------------------------


def scores(areas: np.ndarray) -> Scores:
    """Scores of all images together. UserError where there are none."""
    areas = _checked(areas)
    m_iou, a_acc, m_acc, iou = _scores(areas.sum(axis=0)[None].astype(float))
    return Scores(m_iou.item(), a_acc.item(), m_acc.item(), iou[0])


def image_scores(areas: np.ndarray) -> np.ndarray:
    """float64 [N]: the mIoU of each image, over the classes in its ground truth or its prediction."""
    return _mean(_percent(areas[:, INTERSECTION], areas[:, UNION]))


def _checked(areas: np.ndarray) -> np.ndarray:
    areas = np.asarray(areas)
    if areas.ndim != 3 or areas.shape[1] != 4 or areas.dtype.kind not in "iu":
        raise ValueError(f"areas must be integers [N, 4, C], not {areas.dtype} {list(areas.shape)}")
    if not len(areas):
        raise UserError("there is no image to score: run the evaluation first")
    return areas


def _scores(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sums of areas [R, 4, C] to mIoU, aAcc and mAcc [R] and IoU [R, C]."""
    intersection, union, truth = sums[:, INTERSECTION], sums[:, UNION], sums[:, TRUTH]
    iou = _percent(intersection, union)
    return _mean(iou), _percent(intersection.sum(1), truth.sum(1)), _mean(_percent(intersection, truth)), iou


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """NaN where the whole is 0."""
    return 100 * np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean [R] of values [R, C] that are not NaN; NaN, without a warning, where all are."""
    known = ~np.isnan(values)
    count = known.sum(1)
    return np.where(known, values, 0).sum(1) / np.where(count > 0, count, np.nan)


# --- bootstrap --------------------------------------------------------------------------------------------------------


def draws(images: int, resamples: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Blocks [r, N] of image numbers, drawn with replacement, `resamples` rows in all.

    Only the raw output of PCG64 is used, which NumPy promises to keep, unlike what its distributions make of it.
    """
    generator = np.random.PCG64(seed)
    rows = max(1, BLOCK // images)
    for start in range(0, resamples, rows):
        raw = generator.random_raw((min(rows, resamples - start), images))
        yield ((raw >> np.uint64(32)) * np.uint64(images) >> np.uint64(32)).astype(np.int64)


def bootstrap(areas: np.ndarray, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Estimate:
    """Scores of the images with their intervals. The order of the images changes nothing.

    A resample's mIoU is the mean over the classes that occur in it; a class's interval comes from the resamples
    that it occurs in.
    """
    areas = _checked(areas)
    return _estimate(areas, _scores, resamples, seed, level)


def paired(
    areas: np.ndarray,
    reference: np.ndarray,
    samples: Sequence[str] | None = None,
    reference_samples: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """What `areas` gains over `reference` on the same images: differences of scores, with paired intervals.

    Both are scored on the same resamples, so that images hard for both drop out of the difference. Images are matched
    by their ids where those are given, and by their order where not. A class that only one of the two has gets no
    difference. Raises UserError unless images and ground truth are the same.
    """
    areas, reference = _checked(areas), _checked(reference)
    if samples is not None and reference_samples is not None:
        reference = reference[_matching(samples, reference_samples)]
    elif samples is not None or reference_samples is not None:
        raise TypeError("give the ids of both runs or of neither")
    if len(areas) != len(reference):
        raise UserError(f"the two runs have {len(areas)} and {len(reference)} images: compare runs of the same images")
    if areas.shape != reference.shape:
        raise UserError(
            f"the two runs have {areas.shape[2]} and {reference.shape[2]} classes: compare runs of one data set"
        )
    if other := (areas[:, TRUTH] != reference[:, TRUTH]).any(1).sum():
        raise UserError(
            f"the two runs have another ground truth for {other} of {len(areas)} images: compare runs of one data set"
        )
    both = np.concatenate([areas, reference], axis=1)  # [N, 8, C]
    return _estimate(both, _gain, resamples, seed, level)


def noisy(interval: Interval) -> bool:
    """Whether a difference may be chance: its interval holds 0, or there is none."""
    return not (interval.low > 0 or interval.high < 0)


def _gain(sums: np.ndarray) -> tuple[np.ndarray, ...]:
    """Differences of `_scores` between the first four and the last four of sums [R, 8, C]."""
    return tuple(new - old for new, old in zip(_scores(sums[:, :4]), _scores(sums[:, 4:])))


def _matching(samples: Sequence[str], reference: Sequence[str]) -> list[int]:
    """The place of each of `samples` in `reference`."""
    place = {sample: index for index, sample in enumerate(reference)}
    if len(place) < len(reference) or len(set(samples)) < len(samples):
        raise UserError("a run has an image twice: compare runs with one record for each image")
    if odd := sorted(place.keys() ^ set(samples)):
        raise UserError(
            f"{len(odd)} images, such as {odd[0]}, are in only one of the two runs: finish both, or compare the others"
        )
    return [place[sample] for sample in samples]


def _estimate(areas: np.ndarray, measure: Measure, resamples: int, seed: int, level: float) -> Estimate:
    """What `measure` makes of the sums [1, A, C] of areas [N, A, C], with intervals from its values on resamples."""
    if not 0 < level < 1:
        raise UserError(f"the level of an interval must lie between 0 and 1, such as 0.95, not {level}")
    if resamples < 2:
        raise UserError(f"an interval needs 2 resamples or more, such as 1000, not {resamples}")
    values = measure(areas.sum(0)[None].astype(float))
    bounds = [np.full((2, *value.shape[1:]), np.nan) for value in values]
    if len(areas) > 1:
        parts = [measure(sums) for sums in _resampled(areas, resamples, seed)]
        bounds = [_quantiles(np.concatenate(part), ((1 - level) / 2, (1 + level) / 2)) for part in zip(*parts)]
    m_iou, a_acc, m_acc, iou = (
        [
            Interval(score, low, high, level)
            for score, low, high in np.stack([value[0], *bound]).reshape(3, -1).T.tolist()
        ]
        for value, bound in zip(values, bounds)
    )
    return Estimate(m_iou[0], a_acc[0], m_acc[0], tuple(iou), len(areas), resamples)


def _resampled(areas: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks [r, A, C] of the sums of areas [N, A, C] over resamples.

    How often an image was drawn is a weight, and the sums are one matrix product. They are whole numbers far below
    2^53, so float64 holds them exactly, and the order in which a machine adds changes nothing.
    """
    images = len(areas)
    flat = areas[_order(areas)].reshape(images, -1).astype(float)
    for drawn in draws(images, resamples, seed):
        rows = len(drawn)
        numbered = drawn + images * np.arange(rows)[:, None]
        weights = np.bincount(numbered.ravel(), minlength=rows * images).reshape(rows, images)
        yield (weights.astype(float) @ flat).reshape(rows, *areas.shape[1:])


def _order(areas: np.ndarray) -> np.ndarray:
    """The order [N] that sorts the images by their areas, so that a resample does not depend on the order given."""
    flat = np.ascontiguousarray(areas.reshape(len(areas), -1), dtype=">i8")  # bytes compare as the numbers do
    return np.argsort(flat.view(f"V{8 * flat.shape[1]}").ravel(), kind="stable")


def _quantiles(values: np.ndarray, at: Sequence[float]) -> np.ndarray:
    """Quantiles [len(at), …] over the first axis of values [R, …], linear between them; NaN does not count."""
    values = np.sort(values, axis=0)  # NaN last
    count = (~np.isnan(values)).sum(0)
    place = np.multiply.outer(np.asarray(at), np.maximum(count - 1, 0))
    below = np.floor(place).astype(int)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    low, high = (np.take_along_axis(values, index, axis=0) for index in (below, above))
    return low + (high - low) * (place - below)


# --- words ------------------------------------------------------------------------------------------------------------


def format_score(interval: Interval, digits: int = 1) -> str:
    """`79.3 ± 1.9`: the value and half the width of its interval; the value alone where there is none."""
    value = f"{interval.value:.{digits}f}"
    return value if math.isnan(interval.half_width) else f"{value} ± {interval.half_width:.{digits}f}"


def format_difference(interval: Interval, digits: int = 1) -> str:
    """`+2.1`, or `+0.4 ≈` where it may be chance."""
    return f"{interval.value:+z.{digits}f}{' ≈' if noisy(interval) else ''}"


# --- reports ----------------------------------------------------------------------------------------------------------


class Confused(NamedTuple):
    """Pixels of class `truth` that were taken for `prediction`, and their percentage of the class."""

    truth: str
    prediction: str
    pixels: int
    percent: float


def worst(areas: np.ndarray, samples: Sequence[str], k: int = 10) -> list[tuple[str, float]]:
    """The k images of least mIoU, each with it, the least first. Images without a labelled pixel are left out."""
    return _ranked(areas, samples)[:k]


def best(areas: np.ndarray, samples: Sequence[str], k: int = 10) -> list[tuple[str, float]]:
    """The k images of greatest mIoU, each with it, the greatest first."""
    return _ranked(areas, samples, sign=-1)[:k]


def _ranked(areas: np.ndarray, samples: Sequence[str], sign: int = 1) -> list[tuple[str, float]]:
    scored = [(sample, score) for sample, score in zip(samples, image_scores(areas).tolist()) if not math.isnan(score)]
    return sorted(scored, key=lambda item: (sign * item[1], item[0]))


def confused_pairs(total: np.ndarray, names: Sequence[str], k: int = 10) -> list[Confused]:
    """The k most frequent confusions, by pixels, in a confusion matrix [C, C + 1] or [C, C]."""
    total = np.asarray(total)
    wrong = total.copy()
    np.fill_diagonal(wrong, 0)
    names, truths = [*names, "no class"], total.sum(1)
    order = np.argsort(-wrong.ravel(), kind="stable")[:k]
    pairs = zip(*np.unravel_index(order, wrong.shape))
    return [
        Confused(
            names[truth],
            names[prediction],
            int(wrong[truth, prediction]),
            100 * wrong[truth, prediction] / truths[truth],
        )
        for truth, prediction in pairs
        if wrong[truth, prediction]
    ]
