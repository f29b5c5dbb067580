"""TLP, PEARL's refinement (arXiv 2603.21528), against an independent implementation and the equations written out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_near, golden_keys, picture
from hypothesis import given
from hypothesis import strategies as st

from clearclip.errors import UserError
from clearclip.refine.tlp import TLP, conjugate_gradients, pooled, propagate, self_similarity
from clearclip.segmenter import Segmenter
from clearclip.text import Queries
from clearclip.windows import Stitcher

GOLDEN = [key for key in golden_keys("pearl", "tlp/") if "/out." in key]
STITCHER = Stitcher(torch.device("cpu"))


class Picture:
    """The part of a view that TLP reads: pixels, normalised."""

    stitcher = STITCHER

    def __init__(self, pixels):
        self.pixels = pixels

    def resized_pixels(self, shape):
        return F.interpolate(self.pixels[None], size=shape, mode="bilinear")[0]


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("key", GOLDEN)
def test_golden(key, golden, tiny_backbone):
    _, case, out = key.split("/")
    file = {name: golden("pearl")[f"tlp/{case}/{name}"] for name in ("image_small", "scores_small", "text")}
    shape = tuple(int(side) for side in case.split(".")[0].split("x"))
    maps = STITCHER.resized(file["scores_small"][0], shape)
    queries = Queries(file["text"], tuple(range(len(file["text"]))), ())
    image = Picture(file["image_small"][0])
    actual = TLP(tiny_backbone, grid=int(out.removeprefix("out.grid")))(image, maps, queries).full()
    step = 1 if case.startswith("60x75") else 4
    assert_near(actual[:, ::step, ::step], golden("pearl")[key])


def matrix(image, scores, weights):
    """C [N] and C + 𝓛 [N, N], edge by edge, in float64."""
    image, scores, weights = image.double(), scores.double(), weights.double()
    _, height, width = scores.shape
    p = scores.softmax(dim=0)
    grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    anchor = p.amax(dim=0).clamp(min=0.05) ** 2 * (1 + (weights[:, None, None] * p * p).sum(dim=0).clamp(0, 1))
    system = torch.diag(anchor.flatten())
    for dy, dx in ((1, 0), (0, 1)):
        pairs = [((y, x), (y + dy, x + dx)) for y in range(height - dy) for x in range(width - dx)]
        mean = sum(abs(grey[a] - grey[b]) for a, b in pairs) / max(1, len(pairs))
        for a, b in pairs:
            agreement = sum(weights * p[:, a[0], a[1]] * p[:, b[0], b[1]]).clamp(0, 1)
            weight = (torch.exp(-5 * abs(grey[a] - grey[b]) / (mean + 1e-6)) * (1 + agreement)).clamp(0, 1)
            i, j = a[0] * width + a[1], b[0] * width + b[1]
            system[i, i] += weight
            system[j, j] += weight
            system[i, j] -= weight
            system[j, i] -= weight
    return anchor, system


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (5, 1), (4, 7)])
def test_many_steps_solve_the_equation(shape):
    image, scores, weights = noise(3, *shape), 4 * noise(5, *shape, seed=1), noise(5, seed=2)
    anchor, system = matrix(image, scores, weights)
    expected = torch.linalg.solve(system, (anchor * scores).flatten(1).T).T.unflatten(1, shape)
    actual = propagate(image.double(), scores.double(), weights.double(), steps=200)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_no_step_changes_nothing():
    image, scores = noise(3, 6, 8), noise(4, 6, 8, seed=1)
    assert torch.equal(propagate(image, scores, torch.ones(4), steps=0), scores)


def test_conjugate_gradients_need_as_many_steps_as_unknowns():
    root = noise(6, 6).double()
    system, target = root @ root.T + torch.eye(6), noise(6, seed=1).double()
    found = conjugate_gradients(lambda x: system @ x, target, torch.zeros(6).double(), steps=6)
    torch.testing.assert_close(found, torch.linalg.solve(system, target), rtol=1e-6, atol=1e-8)


@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 99))
def test_pooled_operators_are_block_means(side, block, seed):
    operator = noise(max(side, block), 3, seed=seed)
    expected = F.avg_pool1d(operator.T[None], block)[0].T
    torch.testing.assert_close(pooled(operator, block), expected)


def test_weights_of_texts():
    text = F.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    similarity = (2 * text @ text.T).softmax(dim=1) + 10 * torch.eye(4)
    torch.testing.assert_close(
        self_similarity(text), (similarity / (similarity.sum(dim=1, keepdim=True) + 1e-6)).diag()
    )


def test_edges_stop_what_is_spread():
    """Two halves of different brightness, scores of one class in noise: each half becomes even, the edge stays."""
    image = torch.zeros(3, 12, 16)
    image[:, :, 8:] = 1
    scores = torch.stack([(image[0] > 0).float(), (image[0] == 0).float()]) + noise(2, 12, 16)
    smooth = propagate(image, scores, torch.ones(2))
    for half in (slice(0, 8), slice(8, 16)):
        assert smooth[0, :, half].std() < 0.5 * scores[0, :, half].std()
    assert smooth[0, :, 9].mean() - smooth[0, :, 6].mean() > 0.8


def test_a_suffix_refines_the_scores_of_any_method(make, tiny_backbone):
    image, names = picture(70, 110), list("abcdefg")
    plain, refined = (make(method)(image, names, scores=True) for method in ("MaskCLIP", "MaskCLIP+TLP:grid=30"))
    assert refined.labels.shape == (70, 110)
    assert np.array_equal(refined.labels, refined.scores.argmax(axis=0))
    assert abs(refined.scores - plain.scores).max() > 1e-3
    assert np.allclose(refined.scores.sum(axis=0), 1, atol=1e-4)
    settings = dict(short_side=64, crop=0, two_steps=True, templates=["{}"])
    assert Segmenter("PEARL+TLP+PAMR:iterations=2", tiny_backbone, **settings)(image, ["cat"]).labels.max() == 0


@pytest.mark.parametrize("option", ["grid=0", "steps=-1", "grid=x"])
def test_wrong_options(option, make):
    with pytest.raises(UserError, match=r"grid|steps"):
        make(f"PEARL+TLP:{option}")
