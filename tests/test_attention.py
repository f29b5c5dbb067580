"""Token mixing against the formulas written as loops."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clearclip.attention import TERMS, Attention, gaussian_neighbourhood, mix, mix_terms, polar, similarity_attention
from clearclip.errors import UserError

PLAIN = ("qk", "qq", "kk", "vv", "identity")
written = st.sampled_from((*TERMS, "pearl0.3", "pearlsvd0"))
attentions = st.builds(
    Attention,
    st.lists(written, min_size=1, max_size=3).map(tuple),
    st.none() | st.sampled_from([0.5, 2.0, 5.0, 12.25]),
)


@given(attentions)
def test_written_form_reads_back(attention):
    assert Attention.parse(str(attention)) == attention


def test_spaces_do_not_count():
    assert Attention.parse(" qq + gaussian2.5") == Attention(("qq",), 2.5)


@pytest.mark.parametrize("text", [
    "", "qv", "qq+", "QQ", "gaussian5", "qq+gaussian", "qq+gaussian0", "qq+gaussian-1", "qq2",
    "pearl-1", "pearlx",
])  # fmt: skip
def test_wrong_form_is_refused(text):
    with pytest.raises(UserError, match="qk, qq, kk, vv, identity"):
        Attention.parse(text)


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (4, 2)])
def test_gaussian_neighbourhood(grid):
    height, width = grid
    bias = gaussian_neighbourhood(grid, 1.5).float()
    assert bias.shape == (1 + height * width, 1 + height * width)
    assert not bias[0].any()
    assert not bias[:, 0].any()
    for i in range(height * width):
        for j in range(height * width):
            squared = (i // width - j // width) ** 2 + (i % width - j % width) ** 2
            assert bias[1 + i, 1 + j].item() == pytest.approx(math.exp(-squared / (2 * 1.5**2)), abs=1e-6)


def pearl_logits(q, k, alpha, steps):
    """q (k R)ᵀ + α (k − k̄)(k − k̄)ᵀ, head by head."""
    logits = torch.empty(*q.shape[:3], q.shape[2])
    for index in np.ndindex(q.shape[:2]):
        queries, keys = q[index], k[index]
        weight = queries.norm(dim=1)
        weight[0] = 0
        weight = weight / (weight.sum() + 1e-6)
        query, key = (sum(w * x for w, x in zip(weight, tokens)) for tokens in (queries, keys))
        rotation = polar((keys - key).T @ (queries - query), steps)
        logits[index] = queries @ (keys @ rotation).T + alpha * (keys - key) @ (keys - key).T
    return logits


@given(attentions, st.integers(1, 3), st.integers(1, 4))
def test_mix_is_a_sum_of_softmax_averages(attention, height, width):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 1 + height * width, 4, generator=generator)
    logits = {
        a: named @ named_too.mT / 2 for a, named, named_too in (("qk", q, k), ("qq", q, q), ("kk", k, k), ("vv", v, v))
    }
    for name in set(attention.terms) - {*PLAIN}:
        alpha, steps = float(re.sub("[a-z]", "", name) or 0.08), None if "svd" in name else 5
        logits[name] = pearl_logits(q, k, alpha, steps) / 2
    bias = 0
    if attention.gaussian:
        bias = gaussian_neighbourhood((height, width), attention.gaussian).float()
    expected = torch.zeros_like(v)
    for term in attention.terms:
        expected += v if term == "identity" else (logits[term] + bias).softmax(dim=-1) @ v
    trunk = SimpleNamespace(grid=(height, width), prefix=1, constant=lambda key, make: make().float())
    torch.testing.assert_close(mix(attention, q, k, v, trunk), expected, rtol=1e-4, atol=1e-4)


def test_a_term_of_one_s_own(monkeypatch):
    monkeypatch.setitem(TERMS, "kv", lambda q, k, v, prefix: (k, v))
    attention = Attention.parse("kv+qq")
    q, k, v = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    expected = ((k @ v.mT / 2).softmax(dim=-1) + (q @ q.mT / 2).softmax(dim=-1)) @ v
    torch.testing.assert_close(mix_terms(attention.terms, q, k, v), expected)


def test_exact_polar_factor_is_a_rotation_and_more_steps_come_nearer():
    matrix = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0))
    exact = polar(matrix, steps=None)
    torch.testing.assert_close(exact @ exact.mT, torch.eye(6).expand(3, 6, 6), rtol=0, atol=1e-5)
    distance = [(polar(matrix, steps) - exact).norm() for steps in (2, 5, 12)]
    assert distance == sorted(distance, reverse=True)


def test_half_precision_terms_are_computed_in_single():
    q, k, v = torch.randn(3, 1, 2, 9, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    mixed = mix_terms(("pearl",), q, k, v, torch.zeros(9, 9).bfloat16())
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, mix_terms(("pearl",), q.float(), k.float(), v.float()).bfloat16())


def test_heads_and_projections_are_those_of_the_block(tiny_backbone):
    block, tokens = tiny_backbone.blocks[2], torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        mixed = block.attention_output(mix_terms(("qk",), *block.qkv(tokens)))
        normed = block.norm(tokens)
        expected, _ = block.module.attn(normed, normed, normed, need_weights=False)
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-6)


def test_similarity_attention_as_written():
    torch.manual_seed(0)
    similarity = torch.rand(3, 7, 7)
    weights = similarity_attention(similarity, beta=1.2, gamma=3.0)
    for window, got in zip(similarity, weights):
        shifted = window - 1.2 * window.mean()
        expected = torch.where((shifted >= 0) | torch.eye(7).bool(), (3 * shifted).exp(), 0.0)
        torch.testing.assert_close(got, expected / expected.sum(dim=1, keepdim=True))


def test_similarity_attention_where_all_are_alike():
    assert similarity_attention(torch.ones(4, 4), beta=1.2).equal(torch.eye(4))
