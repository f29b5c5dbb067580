"""SCGA after any method that scores features, and refinements of each kind in one road."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clearclip.decode import Decoded
from clearclip.errors import UserError
from clearclip.refine import Refinement
from clearclip.refine.scga import SCGA, aggregate
from clearclip.segmenter import see_together
from clearclip.vocabulary import Vocabulary

NAMES = list("abcdefg")


@pytest.fixture
def image():
    torch.manual_seed(0)
    return torch.randint(256, (3, 70, 90), dtype=torch.uint8)


def test_plain_loops():
    torch.manual_seed(0)
    features = torch.randn(2, 3, 5)
    flat = F.normalize(features.flatten(0, 1), dim=-1)
    cosine = flat @ flat.T
    out = aggregate(features, 7).flatten(0, 1)
    for i, row in enumerate(cosine):
        logits = {j: 7 * (c - cosine.mean()) for j, c in enumerate(row) if c >= cosine.mean()}
        total = sum(value.exp() for value in logits.values())
        expected = sum(value.exp() / total * features.flatten(0, 1)[j] for j, value in logits.items())
        assert torch.allclose(out[i], expected, atol=1e-6)


def test_patches_all_alike():
    assert torch.allclose(aggregate(torch.ones(3, 4, 5)), torch.ones(3, 4, 5))


@pytest.mark.parametrize("method", ["ClearCLIP", "SC-CLIP", "GEM", "RADSeg"])
def test_features_and_scores(method, make, image):
    plain, refined = make(method), make(f"{method}+SCGA:scale=3")
    before, after = (s(image, NAMES, scores=True, features=True) for s in (plain, refined))
    view = plain.view(image)
    with torch.inference_mode():
        features = aggregate(plain.method.image_features(view).float(), 3)
    assert np.allclose(after.features, F.normalize(features, dim=-1), atol=1e-5)
    assert (after.scores != before.scores).any()
    queries = plain.queries(Vocabulary.of(NAMES))
    scores = (F.normalize(features, dim=-1) @ queries.text.T).permute(2, 0, 1)
    maps = plain.stitcher.resized(scores, view.shape)
    assert np.array_equal(after.labels, plain.decoder(queries).labels(maps).numpy())


def test_methods_without_features(make):
    with pytest.raises(UserError, match="SCGA refines features, of which CLIPer does not make its scores"):
        make("CLIPer+SCGA")


def test_wrong_scale(make):
    with pytest.raises(UserError, match="scale -1"):
        make("ClearCLIP+SCGA:scale=-1")


def test_kinds_act_in_their_order(make, tiny_backbone, image):
    """Features, maps, labels, whatever the order they are given in."""
    seen = []

    class OfLabels(Refinement):
        def labels(self, view, decoded):
            labels, probabilities = decoded.labels, decoded.probabilities
            seen.append(("labels", tuple(labels.shape), tuple(probabilities.shape)))
            return Decoded((labels + 1) % 7, decoded.classes, lambda: probabilities.flip(0))

    class OfMaps(Refinement):
        def __call__(self, view, maps, queries):
            seen.append(("maps", maps.shape))
            return maps

    class OfFeatures(Refinement):
        def features(self, view, features):
            seen.append(("features", tuple(features.shape)))
            return features

    kinds = [kind(tiny_backbone) for kind in (OfLabels, OfMaps, OfFeatures)]
    plain, refined = (make("GEM", refinements=r)(image, NAMES, scores=True) for r in (kinds[1:], kinds))
    assert seen[2:] == [("features", (5, 6, 48)), ("maps", (70, 90)), ("labels", (70, 90), (7, 70, 90))]
    assert np.array_equal(refined.labels, (plain.labels + 1) % 7)
    assert np.array_equal(refined.scores, plain.scores[::-1])


def test_one_pass_for_several(make, image):
    """With and without, on one trunk: what each gives alone."""
    method = make().method
    plain, refined = (make(method, refinements=r) for r in ((), [SCGA(method.backbone)]))
    queries = plain.queries(Vocabulary.of(NAMES))
    views = [plain.view(image)]
    together = see_together([(plain, queries), (refined, queries)], views)
    for segmenter, (dense,) in zip((plain, refined), together):
        alone = segmenter.look([segmenter.view(image)], queries)[0]
        assert torch.equal(dense.scores, alone.scores)
        assert dense.whole == (segmenter is refined)
