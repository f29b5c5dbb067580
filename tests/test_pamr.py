import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import clearclip.refine.pamr as module
from clearclip import Segmenter
from clearclip.refine.pamr import affinity, pamr
from clearclip.windows import LateMaps

DILATIONS = st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True)


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def by_loops(image, maps, iterations, dilations):
    """PAMR pixel by pixel, in float64."""
    image, maps = image.double().numpy(), maps.double().numpy()
    _, height, width = image.shape

    def clamp(y, x):
        return min(max(y, 0), height - 1), min(max(x, 0), width - 1)

    for _ in range(iterations):
        out = np.empty_like(maps)
        for y in range(height):
            for x in range(width):
                window = [clamp(y + d * i, x + d * j) for d in dilations for i in (-1, 0, 1) for j in (-1, 0, 1)]
                around = [
                    clamp(y + d * i, x + d * j) for d in dilations for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j
                ]
                std = np.std([image[:, a, b] for a, b in window], axis=0, ddof=1)
                logits = [-(np.abs(image[:, a, b] - image[:, y, x]) / (0.1 * std + 1e-8)).mean() for a, b in around]
                weights = np.exp(logits) / np.exp(logits).sum()
                out[:, y, x] = sum(weight * maps[:, a, b] for weight, (a, b) in zip(weights, around))
        maps = out
    return torch.from_numpy(maps).float()


@pytest.mark.parametrize(
    ("iterations", "dilations", "shape"), [(1, (1,), (6, 9)), (3, (2, 5), (11, 8)), (2, (8, 16), (5, 5))]
)
def test_pixel_by_pixel(iterations, dilations, shape):
    image, maps = noise(3, *shape), noise(4, *shape, seed=1)
    expected = by_loops(image, maps, iterations, dilations)
    torch.testing.assert_close(pamr(image, maps, iterations, dilations), expected, atol=1e-5, rtol=0)


@given(st.integers(1, 3), DILATIONS, st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_probabilities_stay_probabilities(iterations, dilations, height, width, seed):
    probabilities = noise(5, height, width, seed=seed).softmax(dim=0)
    refined = pamr(noise(3, height, width, seed=seed + 1), probabilities, iterations, dilations)
    assert refined.shape == probabilities.shape
    torch.testing.assert_close(refined.sum(dim=0), torch.ones(height, width))
    for before, after in zip(probabilities, refined):
        assert before.min() - 1e-6 <= after.min()
        assert after.max() <= before.max() + 1e-6


def test_constant_image_smooths_evenly():
    image, maps = torch.full((3, 20, 20), 0.3), noise(2, 20, 20)
    assert torch.equal(affinity(image, (1, 3)), torch.full((16, 20, 20), 1 / 16))
    refined = pamr(image, maps, 1, (1,))
    box = torch.nn.functional.avg_pool2d(maps[None], 3, stride=1)[0]  # the centre included: take it out
    torch.testing.assert_close(refined[:, 1:-1, 1:-1], (9 * box - maps[:, 1:-1, 1:-1]) / 8)


def test_no_iteration_changes_nothing():
    maps = noise(2, 7, 9)
    assert torch.equal(pamr(noise(3, 7, 9), maps, 0), maps)


def test_scale_of_the_image_does_not_matter():
    image, maps = noise(3, 24, 30), noise(3, 24, 30, seed=1)
    brighter = image * torch.tensor([255.0, 4.0, 0.5])[:, None, None] + 3
    torch.testing.assert_close(pamr(brighter, maps, 3), pamr(image, maps, 3), atol=1e-4, rtol=0)


def test_linear_in_the_maps():
    image, maps, other = noise(3, 20, 20), noise(3, 20, 20, seed=1), noise(3, 20, 20, seed=2)
    torch.testing.assert_close(
        pamr(image, 2 * maps - other, 4), 2 * pamr(image, maps, 4) - pamr(image, other, 4), atol=1e-5, rtol=0
    )


def test_labels_follow_edges():
    """A disc on another colour, its labels known only on blocks of 16 pixels and with noise."""
    y, x = torch.meshgrid(torch.arange(96), torch.arange(128), indexing="ij")
    disc = (y - 47) ** 2 + (x - 60) ** 2 < 30**2
    image = torch.where(
        disc, torch.tensor([0.8, 0.2, 0.1])[:, None, None], torch.tensor([0.2, 0.5, 0.6])[:, None, None]
    )
    image = image + 0.02 * noise(3, 96, 128)
    blocks = torch.nn.functional.avg_pool2d(disc[None].float(), 16)
    coarse = torch.nn.functional.interpolate(blocks[None], size=(96, 128), mode="bilinear")[0]
    coarse = (coarse + 0.3 * (noise(1, 96, 128, seed=3) - 0.5)).clamp(0, 1)

    def iou(probability):
        found = probability[0] > 0.5
        return ((found & disc).sum() / (found | disc).sum()).item()

    assert iou(coarse) < 0.9
    assert iou(pamr(image, coarse)) > 0.96


def test_chunks_do_not_show(monkeypatch):
    image, maps = noise(3, 16, 16), noise(7, 16, 16, seed=1)
    whole = pamr(image, maps)
    monkeypatch.setattr(module, "CHUNK_BYTES", 2 * 4 * 16 * 16)
    assert torch.equal(pamr(image, maps), whole)


def test_half_precision_is_computed_in_single():
    image, maps = noise(3, 12, 12), noise(2, 12, 12, seed=1)
    refined = pamr(image.half(), maps.half(), 3)
    assert refined.dtype == torch.float32
    torch.testing.assert_close(refined, pamr(image.half().float(), maps.half().float(), 3))


def test_a_suffix_refines_the_scores_of_any_method(tiny_backbone):
    image = (noise(40, 56, 3) * 255).byte().numpy()
    settings = dict(backbone=tiny_backbone, short_side=64, crop=64, stride=32, templates=["{}"])
    plain = Segmenter("MaskCLIP", **settings)(image, ["cat", "dog, hound", "sky"], scores=True)
    refined = Segmenter("MaskCLIP+PAMR", **settings)(image, ["cat", "dog, hound", "sky"], scores=True)
    assert refined.labels.shape == (40, 56)
    assert np.array_equal(refined.labels, refined.scores.argmax(axis=0))
    assert not np.allclose(refined.scores, plain.scores, atol=1e-4)
    assert np.allclose(refined.scores.sum(axis=0), 1, atol=0.5)


@pytest.mark.parametrize(
    "options", [{}, {"threshold": 0.2}, {"area_threshold": 0.1}, {"threshold": 0.2, "area_threshold": 0.1}], ids=str
)
@pytest.mark.parametrize("names", [list("abcdefg"), ["a", "b, c", "d, e, f", "g"]], ids=["classes", "synonyms"])
def test_scores_that_do_not_fit_are_refined_some_at_a_time(names, options, make, monkeypatch):
    """To the labels that all of them at once give; who asks for probabilities gets these, too."""
    segmenter = make("ClearCLIP+PAMR:iterations=2", **options)
    image = noise(3, 70, 90)
    expected = segmenter(image, names, scores=True)
    monkeypatch.setattr(module, "SCORE_BYTES", 0)
    monkeypatch.setattr("clearclip.decode.LATE_BYTES", 3 * 4 * 70 * 90)
    made, part = [], LateMaps.part
    monkeypatch.setattr(LateMaps, "part", lambda maps, some: made.append(len(some)) or part(maps, some))
    actual = segmenter(image, names)
    assert max(made) == 3
    assert actual.labels.dtype == expected.labels.dtype
    assert np.array_equal(actual.labels, expected.labels)
    again = segmenter(image, names, scores=True)
    assert np.array_equal(again.scores, expected.scores)


def test_what_follows_late_maps_has_all_of_them(make, monkeypatch):
    image = noise(3, 70, 90)
    for method in ("ClearCLIP+PAMR:iterations=2+TLP", "CLIPer+PAMR:iterations=2"):
        segmenter = make(method)
        expected = segmenter(image, list("abcdefg")).labels
        with monkeypatch.context() as patch:
            patch.setattr(module, "SCORE_BYTES", 0)
            assert np.array_equal(segmenter(image, list("abcdefg")).labels, expected)
