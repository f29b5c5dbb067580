"""Scores and intervals, against the metric of MMSegmentation and loops that are written out."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from clearclip.errors import UserError
from clearclip.evaluation.segmentor import ClassIoUMetric
from clearclip.evaluation.statistics import (
    Interval,
    best,
    bootstrap,
    confused_pairs,
    draws,
    format_difference,
    format_score,
    image_scores,
    noisy,
    paired,
    scores,
    worst,
)


def stack_areas(intersection: np.ndarray, prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Areas [N, 4, C] of three counts [N, C]."""
    union = prediction + truth - intersection
    return np.stack([intersection, union, prediction, truth], axis=1).astype(np.int64)


def random_areas(images: int, classes: int, seed: int = 0, quality: float = 0.6, rarest: float = 0.2) -> np.ndarray:
    """Areas [N, 4, C] of a made-up benchmark whose last classes are rare."""
    generator = np.random.default_rng(seed)
    occurs = generator.random((images, classes)) < np.linspace(0.9, rarest, classes)
    truth = occurs * generator.integers(100, 5000, (images, classes))
    intersection = (truth * generator.beta(6 * quality, 6 * (1 - quality), (images, classes))).astype(int)
    wrong = np.stack([generator.permutation(row) for row in truth - intersection])
    return stack_areas(intersection, intersection + wrong, truth)


def in_canonical_order(areas: np.ndarray) -> np.ndarray:
    return areas[sorted(range(len(areas)), key=lambda image: areas[image].ravel().tolist())]


def all_draws(images: int, resamples: int, seed: int) -> list:
    return np.concatenate(list(draws(images, resamples, seed))).tolist()


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(
    arrays(np.int64, (3, 3, 4), elements=st.integers(0, 3)),
    arrays(np.int64, (3, 4), elements=st.integers(0, 2)),
)
def test_scores_are_those_of_the_metric(parts, wrong):
    intersection = parts[:, 0] * (wrong < 2)
    areas = stack_areas(intersection, intersection + wrong, intersection + parts[:, 2])
    if not areas[:, 3].sum():
        areas[0] = 1
    metric = ClassIoUMetric(iou_metrics=["mIoU"])
    metric.dataset_meta = {"classes": "abcd"}
    counts = np.pad(areas.reshape(len(areas), -1), ((0, 0), (0, 2)))  # and no label was strange, none ignored
    expected, ours = metric.compute_metrics(list(counts)), scores(areas)
    for name in ("mIoU", "aAcc", "mAcc"):
        assert getattr(ours, name) == pytest.approx(expected[name], rel=1e-14)
    np.testing.assert_array_equal(ours.IoU, list(expected["IoU"].values()))


def test_scores_of_a_small_case_by_hand():
    areas = np.zeros((2, 4, 3), int)  # class 2 is nowhere
    areas[0, :, 0] = 6, 10, 8, 8
    areas[1, :, 1] = 0, 2, 2, 0  # predicted only
    ours = scores(areas)
    assert (ours.mIoU, ours.aAcc, ours.mAcc) == (30, 75, 75)
    np.testing.assert_array_equal(ours.IoU, [60, 0, np.nan])
    np.testing.assert_array_equal(image_scores(areas), [60, 0])


def test_scores_of_nothing_but_ignored_pixels_are_nan():
    ours = scores(np.zeros((2, 4, 3), int))
    assert all(math.isnan(value) for value in (ours.mIoU, ours.aAcc, ours.mAcc))
    estimate = bootstrap(np.zeros((2, 4, 3), int), resamples=10)
    assert format_score(estimate.mIoU) == "nan"


@pytest.mark.parametrize("function", [scores, bootstrap, lambda areas: paired(areas, areas)])
def test_no_image_is_a_sentence(function):
    with pytest.raises(UserError, match="no image to score: run the evaluation"):
        function(np.zeros((0, 4, 3), int))


@pytest.mark.parametrize("areas", [np.zeros((3, 4)), np.zeros((2, 3, 4), int), np.zeros((2, 4, 3))])
def test_what_is_no_areas_is_refused(areas):
    with pytest.raises(ValueError, match=r"\[N, 4, C\]"):
        scores(areas)


# --- bootstrap --------------------------------------------------------------------------------------------------------


def test_draws_are_the_same_for_ever():
    assert all_draws(10, 2, seed=0) == [[6, 2, 0, 0, 8, 9, 6, 7, 5, 9], [8, 0, 8, 0, 7, 1, 8, 5, 2, 4]]
    assert all_draws(10, 1, seed=1) != all_draws(10, 1, seed=0)


def test_draws_do_not_depend_on_blocks(monkeypatch):
    whole = all_draws(7, 11, seed=3)
    monkeypatch.setattr("clearclip.evaluation.statistics.BLOCK", 15)
    blocks = [len(block) for block in draws(7, 11, seed=3)]
    assert blocks == [2, 2, 2, 2, 2, 1]
    assert all_draws(7, 11, seed=3) == whole


def test_draws_are_even():
    drawn = np.concatenate(list(draws(50, 2000)))
    assert drawn.min() == 0
    assert drawn.max() == 49
    counts = np.bincount(drawn.ravel())
    assert np.abs(counts - 2000).max() < 5 * math.sqrt(2000)  # binomial, nearly


def plain_bootstrap(areas, drawn, value) -> list[float]:
    """`value` of each resample, its images one by one."""
    return [value(np.stack([areas[image] for image in row])) for row in drawn]


@pytest.mark.parametrize("name", ["mIoU", "aAcc", "mAcc"])
@pytest.mark.parametrize("images", [2, 5, 40])  # of few, whole classes are missing from resamples
def test_an_interval_is_that_of_a_plain_loop(images, name, monkeypatch):
    monkeypatch.setattr("clearclip.evaluation.statistics.BLOCK", 100)
    areas = random_areas(images, 6, seed=images)
    estimate = bootstrap(areas, resamples=60, seed=5, level=0.9)
    drawn = all_draws(images, 60, 5)
    values = plain_bootstrap(in_canonical_order(areas), drawn, lambda drawn: getattr(scores(drawn), name))
    low, high = np.nanquantile(values, [0.05, 0.95])
    interval = getattr(estimate, name)
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-12)
    assert interval.value == getattr(scores(areas), name)
    assert (interval.level, estimate.images, estimate.resamples) == (0.9, images, 60)


@pytest.mark.filterwarnings("ignore:All-NaN")
def test_a_class_has_the_interval_of_the_resamples_that_it_occurs_in():
    areas = random_areas(5, 7, seed=2, rarest=0)
    areas[:, :, 6] = 0
    estimate = bootstrap(areas, resamples=60, seed=1)
    values = plain_bootstrap(in_canonical_order(areas), all_draws(5, 60, 1), lambda drawn: scores(drawn).IoU)
    values = np.stack(values)
    assert np.isnan(values[:, :6]).any()
    for interval, column in zip(estimate.IoU, values.T):
        np.testing.assert_allclose([interval.low, interval.high], np.nanquantile(column, [0.025, 0.975]), rtol=1e-12)


def test_the_order_of_images_changes_no_digit():
    areas, other = random_areas(30, 5, seed=1), random_areas(30, 5, seed=1, quality=0.7)
    other = stack_areas(other[:, 0], other[:, 2], other[:, 3])
    order = np.random.default_rng(0).permutation(30)
    assert bootstrap(areas[order], 50) == bootstrap(areas, 50)
    assert paired(areas[order], other[order], resamples=50) == paired(areas, other, resamples=50)
    assert scores(areas[order]).mIoU == scores(areas).mIoU


def test_a_seed_decides_the_interval():
    areas = random_areas(30, 5)
    assert bootstrap(areas, 100, seed=1) == bootstrap(areas, 100, seed=1)
    assert bootstrap(areas, 100, seed=1).mIoU != bootstrap(areas, 100, seed=2).mIoU


def test_one_image_has_scores_and_no_interval():
    areas = random_areas(1, 3, rarest=0.9)
    estimate = bootstrap(areas)
    assert estimate.mIoU.value == scores(areas).mIoU
    assert math.isnan(estimate.mIoU.low)
    assert math.isnan(estimate.IoU[0].half_width)
    assert str(estimate.mIoU) == f"{scores(areas).mIoU:.1f}"
    assert noisy(paired(areas, areas).mIoU)


@pytest.mark.parametrize(("options", "message"), [({"level": 95}, "0.95, not 95"), ({"resamples": 1}, "1000, not 1")])
def test_settings_that_give_no_interval_are_named(options, message):
    with pytest.raises(UserError, match=message):
        bootstrap(random_areas(4, 3), **options)


def test_more_images_make_a_narrower_interval():
    few, many = (bootstrap(random_areas(images, 5), 300).mIoU for images in (50, 800))
    assert 3 < few.half_width / many.half_width < 5.3  # 4, the root of 16


def test_intervals_cover_the_truth_as_often_as_they_say():
    population = random_areas(5000, 6, seed=1)
    truth = scores(population)
    generator, covered = np.random.default_rng(2), Counter()
    for seed in range(250):
        estimate = bootstrap(population[generator.integers(5000, size=100)], 250, seed)
        for name in ("mIoU", "aAcc", "mAcc"):
            interval = getattr(estimate, name)
            covered[name] += interval.low <= getattr(truth, name) <= interval.high
    assert all(0.90 <= count / 250 <= 0.985 for count in covered.values()), covered


# --- pairs ------------------------------------------------------------------------------------------------------------


def better(areas: np.ndarray, share: float) -> np.ndarray:
    """The same ground truth, some of whose wrong pixels are put right."""
    missed = areas[:, 3] - areas[:, 0]
    right = areas[:, 0] + (share * missed).astype(int)
    return stack_areas(right, np.maximum(areas[:, 2], right), areas[:, 3])


def test_a_paired_interval_is_that_of_a_plain_loop():
    reference = random_areas(25, 5)
    areas = better(reference, 0.1)
    gain = paired(areas, reference, resamples=80, seed=4)
    assert gain.mIoU.value == scores(areas).mIoU - scores(reference).mIoU
    both = in_canonical_order(np.concatenate([areas, reference], axis=1))
    differences = {
        name: plain_bootstrap(
            both,
            all_draws(25, 80, 4),
            lambda drawn, name=name: getattr(scores(drawn[:, :4]), name) - getattr(scores(drawn[:, 4:]), name),
        )
        for name in ("mIoU", "aAcc", "mAcc", "IoU")
    }
    for name in ("mIoU", "aAcc", "mAcc"):
        interval = getattr(gain, name)
        assert [interval.low, interval.high] == pytest.approx(np.quantile(differences[name], [0.025, 0.975]), rel=1e-9)
    low = np.quantile(differences["IoU"], 0.025, axis=0)
    assert [interval.low for interval in gain.IoU] == pytest.approx(low, rel=1e-9)


def test_pairs_see_a_difference_that_single_intervals_hide():
    reference = random_areas(60, 5)
    areas = better(reference, 0.05)
    gain, one, other = paired(areas, reference), bootstrap(areas), bootstrap(reference)
    assert other.mIoU.high > one.mIoU.low  # they overlap
    assert not noisy(gain.mIoU)
    assert gain.mIoU.half_width < one.mIoU.half_width / 4
    assert paired(reference, areas).mIoU.value == -gain.mIoU.value


def test_the_same_run_twice_differs_in_nothing():
    areas = random_areas(20, 4)
    gain = paired(areas, areas)
    assert (gain.mIoU.value, gain.mIoU.low, gain.mIoU.high) == (0, 0, 0)
    assert format_difference(gain.mIoU) == "+0.0 ≈"


def test_images_are_matched_by_their_ids():
    reference, samples = random_areas(12, 4), [f"image{number}" for number in range(12)]
    areas, order = better(reference, 0.2), np.random.default_rng(1).permutation(12)
    shuffled = paired(areas[order], reference, [samples[place] for place in order], samples)
    assert shuffled == paired(areas, reference)


def test_runs_that_cannot_be_compared_are_refused():
    areas, samples = random_areas(5, 4), list("abcde")
    with pytest.raises(UserError, match="3 images, such as d, are in only one of the two runs"):
        paired(areas, areas[:4], samples, list("abcx"))
    with pytest.raises(UserError, match="an image twice"):
        paired(areas, areas, samples, list("abcdd"))
    with pytest.raises(UserError, match="5 and 4 images"):
        paired(areas, areas[:4])
    with pytest.raises(UserError, match="4 and 3 classes"):
        paired(areas, areas[:, :, :3])
    with pytest.raises(UserError, match="another ground truth for 2 of 5 images"):
        paired(areas, areas[[1, 0, 2, 3, 4]])
    with pytest.raises(TypeError, match="both"):
        paired(areas, areas, samples)


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 0.7, False),
        (-0.7, -0.1, False),
        (-0.1, 0.7, True),
        (0, 0.7, True),
        (-0.1, 0, True),
        (np.nan, np.nan, True),
    ],
)
def test_noise_is_an_interval_that_holds_zero(low, high, expected):
    assert noisy(Interval(0.4, low, high)) == expected


def test_words():
    interval = Interval(79.31, 77.4, 81.2)
    assert str(interval) == format_score(interval) == "79.3 ± 1.9"
    assert format_score(interval, digits=2) == "79.31 ± 1.90"
    assert format_difference(Interval(2.14, 1, 3)) == "+2.1"
    assert format_difference(Interval(0.4, -0.1, 0.9)) == "+0.4 ≈"
    assert format_difference(Interval(-1.25, -2, -0.5), digits=2) == "-1.25"
    assert format_difference(Interval(-0.04, -1, 1)) == "+0.0 ≈"


# --- reports ----------------------------------------------------------------------------------------------------------


def test_worst_and_best_images():
    areas = np.zeros((5, 4, 2), int)
    for image, right in enumerate([5, 1, 9, 0, 5]):
        areas[image, :, image % 2] = right, 10, right, 10
    areas[3] = 0  # ignored throughout
    samples = ["e", "b", "c", "d", "a"]
    assert worst(areas, samples, 2) == [("b", 10), ("a", 50)]
    assert best(areas, samples, 2) == [("c", 90), ("a", 50)]
    assert worst(areas, samples) == [("b", 10), ("a", 50), ("e", 50), ("c", 90)]


def test_confused_pairs():
    total = np.array([[50, 30, 20], [5, 95, 0]])  # the last column is no class
    pairs = confused_pairs(total, ["cat", "dog"])
    assert pairs == [("cat", "dog", 30, 30), ("cat", "no class", 20, 20), ("dog", "cat", 5, 5)]
    assert confused_pairs(total, ["cat", "dog"], k=1) == pairs[:1]
    assert confused_pairs(np.eye(3, dtype=int), list("abc")) == []
