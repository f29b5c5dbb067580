"""PEARL (arXiv 2603.21528): its attention; `tests/test_tlp.py` has its refinement."""

import numpy as np
import pytest
import torch
from conftest import assert_near, features, golden_keys

from clearclip.attention import polar


@pytest.mark.parametrize("key", golden_keys("pearl", "features/"))
def test_golden(key, golden, tiny_backbone):
    _, variant, image = key.split("/")
    alpha = variant.removeprefix("alpha").removesuffix(".svd")
    term = "pearlsvd" if variant.endswith(".svd") else "pearl"
    actual = features(f"PEARL:attention={term}{alpha}", tiny_backbone, golden("inputs")[image])
    expected = golden("pearl")[key]  # [B, N, 48]
    assert_near(actual[: len(expected)].flatten(1, 2), expected)


def test_polar_factor(golden):
    expected = golden("pearl")
    assert_near(polar(expected["polar/matrix"]), expected["polar/rotation"])


def test_default_is_that_of_most_sets(golden, tiny_backbone):
    actual = features("PEARL", tiny_backbone, golden("inputs")["image_64x64"])
    assert_near(actual.flatten(1, 2), golden("pearl")["features/alpha0.08/image_64x64"])


def test_through_the_segmenter(make):
    image = (torch.rand(3, 90, 120, generator=torch.Generator().manual_seed(0)) * 255).byte()
    first, second = (make(f"PEARL:attention=pearl{alpha}")(image, list("abcdefg"), scores=True) for alpha in (0.08, 3))
    assert first.labels.shape == (90, 120)
    assert np.array_equal(first.labels, first.scores.argmax(axis=0))
    assert not np.allclose(first.scores, second.scores, atol=1e-4)
