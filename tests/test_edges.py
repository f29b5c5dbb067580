"""EDGES: PAMR of blocks, by hand, and what blocks keep."""

import pytest
import torch
import torch.nn.functional as F

from clearclip.errors import UserError
from clearclip.refine.edges import Edges
from clearclip.refine.pamr import pamr
from clearclip.windows import Maps

NAMES = list("abcdefg")


@pytest.fixture
def seen(make):
    """A segmenter and a view of an image of 70 × 90 pixels."""
    torch.manual_seed(0)
    segmenter = make("ClearCLIP")
    return segmenter, segmenter.view(torch.randint(256, (3, 70, 90), dtype=torch.uint8))


def test_by_hand(seen):
    segmenter, view = seen
    scores = torch.randn(4, 70, 90)
    blocks = F.avg_pool2d(scores, 7)  # 70 pixels in 10 blocks; of 90, 6 are left out
    image = F.avg_pool2d(view.resized_pixels((70, 90)), 7)
    expected = F.interpolate(pamr(image, blocks, 3, (1, 3))[None], size=(70, 90), mode="bilinear")[0]
    refined = Edges(segmenter.backbone, grid=10, iterations=3)(view, Maps.of(scores), None)
    assert refined.shape == (70, 90)
    assert refined.scores.shape == (4, 10, 12)
    assert torch.allclose(refined.full(), expected, atol=1e-5)


def test_blocks_of_one_pixel_are_pamr(seen):
    segmenter, view = seen
    scores = torch.randn(2, 70, 90)
    refined = Edges(segmenter.backbone, grid=500)(view, Maps.of(scores), None)
    assert torch.allclose(refined.full(), pamr(view.resized_pixels((70, 90)), scores, 5, (1, 3)), atol=1e-5)


def test_level_maps_stay(seen):
    segmenter, view = seen
    level = torch.tensor([0.1, -0.4])[:, None, None].expand(2, 70, 90)
    assert torch.allclose(Edges(segmenter.backbone, grid=20)(view, Maps.of(level), None).full(), level, atol=1e-6)


def test_it_is_linear_in_the_scores(seen):
    segmenter, view = seen
    one, other = torch.randn(2, 2, 70, 90)
    refine = Edges(segmenter.backbone, grid=20)
    parts = [refine(view, Maps.of(scores), None).full() for scores in (one, other, 2 * one - other)]
    assert torch.allclose(2 * parts[0] - parts[1], parts[2], atol=1e-4)


def test_it_follows_any_method(make, seen):
    _, view = seen
    image = view.original.permute(1, 2, 0).numpy()
    for method in ("ClearCLIP", "Overview:sides=(48)"):
        plain, refined = (make(spec)(image, NAMES, scores=True) for spec in (method, f"{method}+EDGES:grid=20"))
        assert (plain.scores != refined.scores).any()
        assert refined.labels.shape == (70, 90)


@pytest.mark.parametrize("option", ["grid=0", "iterations=0"])
def test_wrong_options(make, option):
    with pytest.raises(UserError, match="must be 1 or more"):
        make(f"ClearCLIP+EDGES:{option}")
