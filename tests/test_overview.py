"""Overview: its equations in plain loops, what must not change its scores, and the road through it."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from clearclip.errors import UserError
from clearclip.methods import create_method, similarity
from clearclip.methods.overview import averaged, centred, whole_shape, with_prior
from clearclip.view import normalise
from clearclip.vocabulary import Vocabulary

NAMES = list("abcdefg")
SMALL = "Overview:base=ClearCLIP,sides=(48)"


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture
def image():
    torch.manual_seed(0)
    return torch.randint(256, (3, 70, 90), dtype=torch.uint8)


def test_centred_in_plain_loops():
    text = unit(5, 8)
    mean = sum(text) / 5
    rests = [row - 0.6 * mean for row in text]
    length = sum(math.sqrt(sum(x * x for x in rest)) for rest in rests) / 5
    expected = torch.stack([rest * length / math.sqrt(sum(x * x for x in rest)) for rest in rests])
    assert torch.allclose(centred(text, 0.6), expected, atol=1e-6)


def test_centring_by_nothing_keeps_the_text():
    text = unit(5, 8)
    assert torch.allclose(centred(text, 0.0), text, atol=1e-6)


def test_one_name_keeps_its_direction():
    text = unit(1, 8)
    assert torch.allclose(F.normalize(centred(text, 0.6), dim=-1), text, atol=1e-6)


def test_two_names_keep_their_difference():
    """Both are as far from their mean, so that nothing but what is common to both goes: labels are those of cosines."""
    text = unit(2, 8)
    one, other = centred(text, 0.6)
    assert torch.allclose(one - other, text[0] - text[1], atol=1e-6)


def test_names_in_another_order():
    text, order = unit(6, 8), torch.tensor([3, 0, 5, 1, 2, 4])
    assert torch.allclose(centred(text[order], 0.6), centred(text, 0.6)[order], atol=1e-6)


def test_prior_in_plain_loops():
    scores = 0.1 * torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(1))
    out = with_prior(scores, 0.5)
    pixels = [(y, x) for y in range(2) for x in range(4)]
    for q in range(3):
        shares = [
            math.exp(100 * scores[q, y, x]) / sum(math.exp(100 * scores[p, y, x]) for p in range(3)) for y, x in pixels
        ]
        added = 0.5 / 100 * math.log(sum(shares) / len(shares))
        assert torch.allclose(out[q], scores[q] + added, atol=1e-6)


def test_prior_of_an_absent_name_is_bounded():
    scores = torch.stack([torch.zeros(4, 4), torch.full((4, 4), 2.0)])
    assert torch.allclose(with_prior(scores, 1.0) - scores, torch.tensor([math.log(1e-6) / 100, 0.0])[:, None, None])


@given(st.integers(0, 99), st.floats(-1, 1))
def test_prior_knows_differences_alone(seed, offset):
    scores = 0.1 * torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(with_prior(scores + offset, 0.3), with_prior(scores, 0.3) + offset, atol=1e-5)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 800), st.sampled_from([14, 16, 32]))
def test_whole_shape(height, width, side, patch):
    rows, columns = whole_shape(height, width, side, patch)
    assert rows % patch == 0
    assert columns % patch == 0
    assert min(rows, columns) >= patch
    assert abs(min(rows, columns) - side) <= max(patch / 2, patch - side)
    for length, exact in ((rows, height), (columns, width)):
        assert abs(length - exact * side / min(height, width)) <= max(patch / 2 + 1e-6 * length, patch - side)


def test_usual_shapes():
    assert whole_shape(375, 500, 336, 16) == (336, 448)
    assert whole_shape(640, 480, 336, 14) == (448, 336)


def test_one_look_is_as_it_is():
    look = unit(3, 4, 8)
    assert torch.equal(averaged([look]), look)


def test_looks_meet_on_the_finest_grid():
    fine, coarse = unit(4, 6, 8), torch.ones(2, 3, 8)
    assert torch.allclose(averaged([coarse, fine]), (fine + 1) / 2, atol=1e-6)


@torch.inference_mode()
def test_the_whole_road(make, image):
    """One small look: the base's features of the resized image, their cosine to centred text, and the prior."""
    segmenter = make(f"{SMALL},centring=0.5,prior=0.2")
    backbone, view = segmenter.backbone, segmenter.view(image)
    shape = whole_shape(70, 90, 48, backbone.patch_size)
    whole = F.interpolate(normalise(image, backbone)[None], size=shape, mode="bilinear")
    features = create_method("ClearCLIP", backbone).features(backbone.trunk(whole))
    queries = segmenter.queries(Vocabulary.of(NAMES))
    expected = with_prior(similarity(features, centred(queries.text, 0.5))[0], 0.2)
    assert torch.allclose(segmenter.method.image_scores(view, queries.for_scores), expected, atol=1e-5)
    labels = segmenter.decoder(queries).labels(segmenter.stitcher.resized(expected, (70, 90)))
    assert np.array_equal(segmenter(image.permute(1, 2, 0).numpy(), NAMES).labels, labels.numpy())


@torch.inference_mode()
def test_windows_alone_are_the_base(make, image):
    """Without whole looks, centring and prior nothing but the base's stitched unit features is left."""
    segmenter = make("Overview:base=ClearCLIP,sides=(),windows=True,centring=0,prior=0")
    view = segmenter.view(image)
    base = create_method("ClearCLIP", segmenter.backbone)
    windows = torch.cat([F.normalize(base.features(trunk), dim=-1) for trunk in view.trunks])
    text = segmenter.queries(Vocabulary.of(NAMES))
    expected = similarity(view.stitch(windows)[None], text.text)[0]
    assert len(windows) > 1
    assert torch.allclose(segmenter.method.image_scores(view, text.for_scores), expected, atol=1e-5)


def test_whole_looks_need_no_windows(make, image):
    """Neither the protocol's windows nor its size change what is seen whole."""
    small, large = (
        make(SMALL, short_side=side)(image.permute(1, 2, 0).numpy(), NAMES, features=True) for side in (80, 128)
    )
    assert np.array_equal(small.labels, large.labels)
    assert np.array_equal(small.features, large.features)


def test_variants_share_their_looks(make, image):
    one, other = make(SMALL), make(f"{SMALL},prior=0")
    view = one.view(image)
    with torch.inference_mode():
        one.method.image_features(view)
        seen = len(view._made)
        other.method.image_features(view)
    assert seen == len(view._made) == 1


@pytest.mark.parametrize("crop", [0, 64])
@pytest.mark.parametrize("names", [["a"], ["a", "b, c"], NAMES])
def test_short_vocabularies(make, image, names, crop):
    result = make("Overview:sides=(48,64),windows=True", crop=crop)(image.permute(1, 2, 0).numpy(), names, scores=True)
    assert result.labels.shape == (70, 90)
    assert result.labels.max() < len(names)
    total = result.scores.sum(0)  # of synonyms, the best is what counts
    if len(names) == 1:  # the cosine
        assert np.array_equal(result.scores, result.similarity)
        return
    assert (total <= 1 + 1e-5).all()
    assert np.allclose(total, 1, atol=1e-5) == ("b, c" not in names)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("base=CLIPer", "features of single windows"),
        ("base=Overview", "features of single windows"),
        ("sides=()", "windows=True"),
        ("sides=(0)", "1 or more"),
        ("centring=1", "below 1"),
        ("prior=-1", "at least 0"),
    ],
)
def test_wrong_options(make, options, reason):
    with pytest.raises(UserError, match=reason):
        make(f"Overview:{options}")
