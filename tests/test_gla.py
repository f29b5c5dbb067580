"""GLA-CLIP: golden numbers, its formula row by row, what windows see of one another, and its road through Segmenter."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN, assert_near, picture
from safetensors import safe_open

from clearclip.errors import UserError
from clearclip.methods import create_method, gla
from clearclip.methods.gla import GLACLIP, find_anchors
from clearclip.methods.proxyclip import ProxyCLIP
from clearclip.vocabulary import Vocabulary
from clearclip.windows import Stitcher

VARIANTS = {
    "full": {},
    "no_anchor": dict(steps=0, beta=1.2, gamma=3.0),
    "anchor_only": dict(beta=1.2, gamma=3.0),
}


def keys(prefix):
    with safe_open(GOLDEN / "gla.safetensors", framework="pt") as file:
        return sorted(key for key in file.keys() if key.startswith(prefix))  # noqa: SIM118


def count(key):
    return int(key.rpartition("windows")[2])


@pytest.fixture(scope="module")
def windows(golden):
    image = golden("inputs")["image_112x160"][0, :, :96, :128]
    corners = golden("gla")["crop_corners"].tolist()
    return torch.stack([image[:, y : y + 64, x : x + 64] for y, x in corners])


def unit_keys(external):
    return F.normalize(external.flatten(2).transpose(1, 2).flatten(0, 1), dim=1)


def features(backbone, external, images, **options):
    with torch.inference_mode():
        return GLACLIP(backbone, vfm=lambda _: external, **options).features(backbone.trunk(images))


@pytest.mark.parametrize("key", keys("features/"))
def test_golden_features(key, golden, windows, tiny_backbone):
    n, (_, variant, _) = count(key), key.split("/")
    actual = features(tiny_backbone, golden("gla")["external"][:n], windows[:n], **VARIANTS[variant])
    assert_near(actual.flatten(1, 2), golden("gla")[key])


@pytest.mark.parametrize("key", keys("anchor/"))
def test_golden_anchors(key, golden):
    rows = unit_keys(golden("gla")["external"][: count(key)])
    anchors, counts = find_anchors(rows, rows, 0.6, 2)
    assert_near(anchors, golden("gla")[key])
    assert torch.equal(counts[:, 0], golden("gla")[key.replace("anchor", "anchor_count")])


def test_every_golden_array_is_tested():
    counts = {f"anchor_count/windows{count(key)}" for key in keys("anchor/")}
    assert set(keys("")) == {*keys("features/"), *keys("anchor/"), *counts, "crop_corners", "external"}


def test_row_by_row(tiny_backbone):
    """The attention of each patch, in plain loops."""
    rows = F.normalize(torch.randn(20, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    actual = GLACLIP(tiny_backbone, vfm=lambda _: rows).attention(rows, rows, beta := 1 + 0.3 * math.log(1 + 4))
    for query, weights in zip(rows, actual):
        for _ in range(2):
            near = [key for key in rows if query @ key > 0.6]
            query = F.normalize(sum(near), dim=0)
        s = torch.stack([query @ key for key in rows])
        s = (1 + 30 / len(near)) * (s - beta * max(s.mean(), 0))
        expected = torch.where(s >= min(s.max(), 0), s.exp(), 0)
        assert_near(weights, expected / expected.sum(), 1e-5)


def test_windows_see_one_another(golden, windows, tiny_backbone):
    external = golden("gla")["external"]
    alone = features(tiny_backbone, external[:1], windows[:1], beta=1.2)
    together = features(tiny_backbone, external[:2], windows[:2], beta=1.2)[:1]
    assert (together - alone).abs().max() > 0.01 * alone.abs().max()


def test_chunks_and_batches_do_not_show(golden, windows, tiny_backbone, monkeypatch):
    external = golden("gla")["external"]
    expected = features(tiny_backbone, external, windows)
    monkeypatch.setattr(gla, "CHUNK_BYTES", 4 * len(unit_keys(external)) * 50)
    parts = iter(external.split(4))
    method = GLACLIP(tiny_backbone, vfm=lambda _: next(parts))
    with torch.inference_mode():
        actual = method.across([tiny_backbone.trunk(batch) for batch in windows.split(4)])
    assert_near(actual, expected, 1e-5)


def test_uniform_features_have_scores(windows, tiny_backbone):
    for value in (0.0, 1.0):
        actual = features(tiny_backbone, torch.full((6, 8, 4, 4), value), windows)
        assert actual.isfinite().all()
        assert_near(actual, actual[:1, :1, :1].expand_as(actual), 1e-4)  # every patch is the mean of all


@pytest.mark.parametrize("options", ["steps=-1", "alike=1", "steps=0"])
def test_wrong_options_are_user_errors(options, tiny_backbone, vit_weights):
    with pytest.raises(UserError, match=r"GLA-CLIP.*steps"):
        create_method(f"GLA-CLIP:vfm=test_vit,vfm_weights={vit_weights},{options}", tiny_backbone)


def test_through_segmenter(make, vit_weights):
    """Scores of windows, each with the others in sight, averaged pixel by pixel; batches of windows do not show."""
    name = f"GLA-CLIP:vfm=test_vit,vfm_weights={vit_weights}"
    segmenter, image = make(name), picture(60, 90)
    result = segmenter(image, list("abcdefg"), scores=True, features=True)
    one_by_one = make(name, window_batch=1)(image, list("abcdefg"), scores=True)
    np.testing.assert_allclose(one_by_one.scores, result.scores, atol=1e-5)
    assert result.labels.shape == (60, 90)
    assert result.features.shape == (5, 8, 48)  # the patches of 80 × 120 pixels

    queries = segmenter.queries(Vocabulary.of(list("abcdefg")))
    view = segmenter.view(torch.from_numpy(image).permute(2, 0, 1))
    with torch.inference_mode():
        windows = segmenter.method.window_features(view)
        scores = F.normalize(windows, dim=-1) @ queries.text.T  # [n, h, w, Q]
        stitched = Stitcher(torch.device("cpu")).maps(scores.permute(0, 3, 1, 2), view.plan, view.shape)
        expected = segmenter.decoder(queries).probabilities(stitched)
    np.testing.assert_allclose(result.scores, expected, atol=1e-4)


@pytest.mark.parametrize("crop", [0, 64])
def test_one_window_is_enough(crop, make, vit_weights):
    name = f"GLA-CLIP:vfm=test_vit,vfm_weights={vit_weights}"
    result = make(name, short_side=64, crop=crop)(picture(40, 40), list("abcdefg"), scores=True)
    assert result.scores.shape == (7, 40, 40)


def test_differs_from_proxyclip(golden, windows, tiny_backbone):
    external = golden("gla")["external"][:1]
    with torch.inference_mode():
        proxy = ProxyCLIP(tiny_backbone, vfm=lambda _: external).features(tiny_backbone.trunk(windows[:1]))
    ours = features(tiny_backbone, external, windows[:1])
    assert (ours - proxy).abs().max() > 0.1 * proxy.abs().max()
