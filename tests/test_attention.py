"""Token mixing against the formulas written as loops."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clearclip.attention import TERMS, Attention, gaussian_neighbourhood, mix, mix_terms, similarity_attention
from clearclip.errors import UserError

attentions = st.builds(
    Attention,
    st.lists(st.sampled_from(TERMS), min_size=1, max_size=3).map(tuple),
    st.none() | st.sampled_from([0.5, 2.0, 5.0, 12.25]),
)


@given(attentions)
def test_written_form_reads_back(attention):
    assert Attention.parse(str(attention)) == attention


def test_spaces_do_not_count():
    assert Attention.parse(" qq + gaussian2.5") == Attention(("qq",), 2.5)


@pytest.mark.parametrize("text", ["", "qv", "qq+", "QQ", "gaussian5", "qq+gaussian", "qq+gaussian0", "qq+gaussian-1"])
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


@given(attentions, st.integers(1, 3), st.integers(1, 4))
def test_mix_is_a_sum_of_softmax_averages(attention, height, width):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 1 + height * width, 4, generator=generator)
    logits = {
        a: named @ named_too.mT / 2 for a, named, named_too in (("qk", q, k), ("qq", q, q), ("kk", k, k), ("vv", v, v))
    }
    bias = 0
    if attention.gaussian:
        bias = gaussian_neighbourhood((height, width), attention.gaussian).float()
    expected = torch.zeros_like(v)
    for term in attention.terms:
        expected += v if term == "identity" else (logits[term] + bias).softmax(dim=-1) @ v
    trunk = SimpleNamespace(grid=(height, width), prefix=1, constant=lambda key, make: make().float())
    torch.testing.assert_close(mix(attention, q, k, v, trunk), expected, rtol=1e-5, atol=1e-5)


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
