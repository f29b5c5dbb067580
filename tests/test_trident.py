"""Trident: every golden array, SAM's attention against timm's own block, and the whole road with tiny networks."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from clearclip import windows
from clearclip.methods.trident import SAMAttention, Trident, correlation
from clearclip.view import View
from clearclip.windows import Stitcher, covering_shape

CORRELATIONS = [(0.0, "kept"), (1.2, "kept"), (1.2, "raised"), (3.0, "raised")]
FEATURES = [(5, 1.2, "kept"), (6, 1.2, "kept"), (8, 0.0, "kept"), (8, 1.2, "kept"), (8, 1.2, "raised"),
            (8, 3.0, "raised")]  # fmt: skip


@pytest.fixture(scope="module")
def trident(golden):
    return golden("trident")


def close(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.fixture
def view(golden, tiny_backbone, monkeypatch):
    """The six golden windows; the image is normalised already."""
    image = golden("inputs")["image_112x160"][0, :, :96, :128]
    view = View(
        tiny_backbone, image, image, (96, 128), windows.plan(96, 128, 64, 32, 16), 4, Stitcher(torch.device("cpu"))
    )
    monkeypatch.setitem(vars(view), "pixels", image)
    return view


def method(backbone, external, **options):
    """Trident whose vision model hands out the golden features, window by window."""
    given = list(external)
    return Trident(backbone, vfm=lambda images: torch.stack([given.pop(0) for _ in images]), sam=lambda image: None, **options)


def options(factor, negative):
    return {"cos_factor": factor, "keep_negative": negative == "kept"}


def test_windows_lie_where_they_should(view, trident):
    corners = [[y, x] for y in view.plan.rows.starts for x in view.plan.columns.starts]
    assert corners == trident["crop_corners"].tolist()


def test_sizes(trident):
    for height, width, patch, window, *expected in trident["sizes"].tolist():
        assert covering_shape(height, width, patch, window) == tuple(expected)


@pytest.mark.parametrize("side", [5, 6, 8])
def test_spliced(side, view, trident):
    out = method(view.backbone, trident[f"external{side}"]).spliced(view)
    close(out.permute(2, 0, 1), trident[f"stitched/external{side}"])


@pytest.mark.parametrize(("factor", "negative"), CORRELATIONS)
def test_correlation(factor, negative, trident):
    values = trident["sam/values"].flatten(1, 2)
    weights = correlation(trident["sam/attention"], values, factor, negative == "kept")
    close(weights, trident[f"correlation/cos{factor}.neg_{negative}"])


@pytest.mark.parametrize(("side", "factor", "negative"), FEATURES)
def test_features(side, factor, negative, view, trident):
    some = method(view.backbone, trident[f"external{side}"], **options(factor, negative))
    mixed = some.correlated(some.spliced(view), [(trident["sam/attention"], trident["sam/values"])])
    features = view.backbone.project(mixed)
    assert features.shape[:2] == (9, 13)
    close(features.flatten(0, 1), trident[f"features/external{side}.cos{factor}.neg_{negative}"])


def test_halves(view, trident):
    some = method(view.backbone, trident["external8"], **options(3.0, "raised"))
    seen = list(zip(trident["halves/attention"], trident["halves/values"]))
    mixed = some.correlated(some.spliced(view), seen)
    close(view.backbone.project(mixed).flatten(0, 1), trident["halves/features"])
