"""ResCLIP against the numbers of an independent implementation, and SFR's graph against plain loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_near, golden_keys, scores
from hypothesis import given
from hypothesis import strategies as st

from clearclip.errors import UserError
from clearclip.methods import create_method
from clearclip.methods.resclip import blur, label_graph, middle_blocks
from clearclip.segmenter import Segmenter
from clearclip.text import Queries

BASES = ["CLIP", "MaskCLIP", "SCLIP", "NACLIP", "ClearCLIP", "PEARL"]
NAMED = {"naclip": "NACLIP", "clearclip": "ClearCLIP", "sclip": "SCLIP", "vanilla": "ClearCLIP:attention=qk"}
SCALE = 40
SETTING = "rcs_tau=2,rcs_lambda=0.3,sfr_tau=2.1,sfr_lambda=0.7,confidence=0.3"  # the golden file's


def method(base, parts, backbone):
    """The method of a golden key: parts are none, rcs, sfr or rcs+sfr, with a variant after a dot."""
    parts, _, variant = parts.partition(".")
    setting = (
        SETTING if variant != "voc21" else SETTING.replace("2.1", "2.2").replace("confidence=0.3", "confidence=0.5")
    )
    switches = f"rcs={'rcs' in parts},sfr={'sfr' in parts},path={variant != 'no_path'}"
    return create_method(f"ResCLIP:base={NAMED[base]},{setting},{switches}", backbone)


class Seen:
    """What a method makes on its way for one golden image [1, 3, H, W]."""

    def __init__(self, key, golden, backbone):
        _, base, parts, image = key.split("/")
        file = golden("resclip")
        self.method, self.trunk, text = (
            method(base, parts, backbone),
            backbone.trunk(file[f"image_{image}"]),
            file["text"],
        )
        with torch.inference_mode():
            self.residual = self.method.residual_values(self.trunk)
            self.first = self.method.rewire(self.trunk, self.residual)  # [1, h, w, 48]
            unit = F.normalize(self.first, dim=-1)
            self.logits = SCALE * torch.einsum("bhwd,qd->bqhw", unit, text)

    @torch.inference_mode()
    def labels(self):
        return self.method.first_labels(self.trunk, self.logits)

    @torch.inference_mode()
    def features(self):
        if not self.method.sfr:
            return self.method.features(self.trunk)
        return self.method.rewire(self.trunk, self.residual, self.method.feedback(self.labels(), self.trunk))


@pytest.mark.parametrize("key", golden_keys("resclip", "features/"))
def test_features(key, golden, deep_backbone):
    assert_near(Seen(key, golden, deep_backbone).features()[0].flatten(0, 1), golden("resclip")[key])


@pytest.mark.parametrize("key", golden_keys("resclip", "first_scores/"))
def test_first_pass(key, golden, deep_backbone):
    seen = Seen(key, golden, deep_backbone)
    with torch.inference_mode():
        probabilities = seen.method.first_pass(seen.trunk.images[0], seen.logits[0])
    assert_near(probabilities[:, ::4, ::4], golden("resclip")[key])


@pytest.mark.parametrize("key", golden_keys("resclip", "patch_labels/"))
def test_patch_labels(key, golden, deep_backbone):
    assert torch.equal(Seen(key, golden, deep_backbone).labels()[0], golden("resclip")[key].long())


@pytest.mark.parametrize("key", golden_keys("resclip", "sfr/"))
def test_graph(key, golden, deep_backbone):
    seen, expected = Seen(key, golden, deep_backbone), golden("resclip")[key]  # [1+N, 1+N]
    labels = seen.labels()
    assert_near(F.pad(label_graph(labels, seen.method.path)[0], (1, 0, 1, 0)), expected)
    assert_near(seen.method.feedback(labels, seen.trunk)[0], expected / expected.max())


def test_residual_attention(golden, deep_backbone):
    trunk = deep_backbone.trunk(golden("resclip")["image_a"])
    with torch.inference_mode():
        mean = sum(trunk.attention(index) for index in middle_blocks(12)) / 4
        expected = mean @ trunk.qkv()[2]
        assert_near(mean[0], golden("resclip")["rcs/a"])
        assert_near(method("naclip", "rcs", deep_backbone).residual_values(trunk), expected, 1e-5)


@pytest.mark.parametrize("name", ["q7", "synonyms", "whole"])
def test_pipeline(name, golden, deep_backbone):
    file = golden("resclip")
    labels, probabilities = (file[f"pipeline/{name}/{what}"] for what in ("labels", "probabilities"))
    windows = dict(crop=0, two_steps=True) if name == "whole" else dict(crop=64, stride=32)
    threshold = 0.4 if name == "synonyms" else 0
    query_class = (0, 0, 1, 2, 2, 3, 4) if name == "synonyms" else tuple(range(7))
    segmenter = Segmenter(
        f"ResCLIP:{SETTING}", deep_backbone, short_side=0, logit_scale=SCALE, threshold=threshold, **windows
    )
    prepared = segmenter.method.prepare(file["text"], query_class, SCALE)
    queries = Queries(file["text"], query_class, tuple("abcdefg"[: max(query_class) + 1]), prepared)
    image = file["image_c" if name == "whole" else "image_b"][0]
    view = segmenter.view(image, tuple(labels.shape))
    maps = segmenter.maps(view, segmenter.look([view], queries)[0], queries)
    decoder = segmenter.decoder(queries)
    assert_near(decoder.probabilities(maps)[:, ::4, ::4], probabilities)
    assert torch.equal(decoder.labels(maps), labels)


def test_through_the_segmenter(make):
    image = (torch.rand(3, 90, 120, generator=torch.Generator().manual_seed(0)) * 255).byte()
    settings = dict(logit_scale=200.0)  # the tiny network's scores are close to each other
    plain, both = (
        make(name, **settings)(image, list("abcdefg"), scores=True) for name in ("ResCLIP:sfr=False", "ResCLIP")
    )
    assert both.labels.shape == (90, 120)
    assert abs(plain.scores - both.scores).max() > 1e-3


# Each step alone


def graph_by_loops(labels, path):
    """SFR's graph [N, N] of labels [h, w], pair by pair."""
    height, width = labels.shape
    count, steps = height * width, max(height, width) - 1
    edges = torch.zeros(count, count)
    for i in range(count):
        for j in range(count):
            (a, b), (c, d) = divmod(i, width), divmod(j, width)
            if labels[a, b] != labels[c, d]:
                continue
            distance = max(abs(a - c), abs(b - d))
            shares = [k / steps for k in range(distance + 1)] if steps else [0.0]
            along = [(round(a * (1 - s) + c * s), round(b * (1 - s) + d * s)) for s in shares]
            free = not path or all(labels[place] == labels[a, b] for place in along)
            edges[i, j] = 1 if free else math.exp(-distance / steps)
    taps = min(count, 31)
    reach = (taps + (taps % 2 == 0)) // 2
    kernel = [math.exp(-(t**2) / 50) for t in range(-reach, reach + 1)]
    blurred = torch.zeros_like(edges)
    for j in range(count):
        for t in range(-reach, reach + 1):
            if 0 <= j + t < count:
                blurred[:, j] += edges[:, j + t] * kernel[t + reach] / sum(kernel)
    return blurred / (blurred.sum(dim=1, keepdim=True) + 1e-8)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.booleans(), st.integers(0, 2**30))
def test_graph_pair_by_pair(height, width, classes, path, seed):
    labels = torch.randint(classes, (2, height, width), generator=torch.Generator().manual_seed(seed))
    actual = label_graph(labels, path)
    for b in range(2):
        torch.testing.assert_close(actual[b], graph_by_loops(labels[b], path), rtol=1e-4, atol=1e-6)


def test_a_label_between_weakens_the_edge():
    labels = torch.tensor([[[0, 0, 1, 0, 0]]])
    whole, walked = label_graph(labels, path=False)[0], label_graph(labels)[0]
    assert torch.equal(walked.argmin(dim=1), torch.tensor([4, 4, 0, 0, 0]))
    assert walked[0, 4] / walked[0, 0] < whole[0, 4] / whole[0, 0]


@pytest.mark.parametrize("count", [1, 2, 24, 31, 80])
def test_blur_is_a_convolution(count):
    rows = torch.rand(3, count, generator=torch.Generator().manual_seed(0))
    taps = min(count, 31) + (min(count, 31) % 2 == 0)
    kernel = torch.exp(-((torch.arange(taps) - taps // 2) ** 2) / 50)
    expected = F.conv1d(rows[:, None], (kernel / kernel.sum())[None, None], padding=taps // 2)[:, 0]
    torch.testing.assert_close(blur(rows), expected, rtol=1e-5, atol=1e-6)


def test_patch_labels_are_the_most_frequent(tiny_backbone):
    method = create_method("ResCLIP:confidence=0.5", tiny_backbone)
    labels = torch.full((20, 37), 3)  # one row and two columns of patches, and pixels beyond
    labels[:16, :8] = 2  # as many as of 3 in the first patch: the smaller wins
    labels[:9, 16:32] = 1
    probabilities = F.one_hot(labels, 4).permute(2, 0, 1).float()
    assert method.patch_labels(probabilities, (1, 2)).tolist() == [[2, 1]]
    probabilities[:, :, 16:] *= 0.4  # no longer sure: the first query
    assert method.patch_labels(probabilities, (1, 2)).tolist() == [[2, 0]]


@pytest.mark.parametrize(("depth", "blocks"), [(6, [2, 3]), (12, [5, 6, 7, 8]), (24, [5, 6, 7, 8])])
def test_middle_blocks(depth, blocks):
    assert list(middle_blocks(depth)) == blocks


# Options


@pytest.mark.parametrize("base", BASES)
def test_both_parts_switch_off(base, golden, tiny_backbone):
    """In the authors' code neither does: its switches are tuples, and tuples are true."""
    images, text = golden("inputs")["image_64x96"], 200 * golden("inputs")["text"]
    plain = scores(base, tiny_backbone, images, text / 200)
    assert_near(scores(f"ResCLIP:base={base},rcs=False,sfr=False", tiny_backbone, images, text), plain, 1e-5)
    for off in ("rcs", "sfr"):
        one = scores(f"ResCLIP:base={base},{off}=False", tiny_backbone, images, text)
        if base == "MaskCLIP" and off == "rcs":  # it has no logits that feedback could change
            assert_near(one, plain, 1e-5)
        else:
            assert (one - plain).abs().max() > 1e-4


@pytest.mark.parametrize("base", ["NACLIP", "SCLIP"])
def test_images_of_a_batch_do_not_meet(base, golden, tiny_backbone):
    images, text = golden("inputs")["image_64x96"], 200 * golden("inputs")["text"]
    name = f"ResCLIP:base={base}"
    alone = torch.cat([scores(name, tiny_backbone, image[None], text) for image in images])
    assert_near(scores(name, tiny_backbone, images, text), alone, 1e-5)


@pytest.mark.parametrize(
    "option", ["rcs=no", "sfr=2", "rcs_lambda=1.5", "sfr_lambda=-0.1", "confidence=2", "rcs_tau=much", "base=GEM"]
)
def test_wrong_options_name_the_known(option, tiny_backbone):
    names = "base, confidence, path, rcs, rcs_lambda, rcs_tau, sfr, sfr_lambda, sfr_tau"
    with pytest.raises(UserError, match=f"its options are {names}"):
        create_method(f"ResCLIP:{option}", tiny_backbone)


def test_unknown_base(tiny_backbone):
    with pytest.raises(UserError, match="unknown method 'none'"):
        create_method("ResCLIP:base=none", tiny_backbone)
