"""Token mixing: which tokens the last block's values are averaged over."""

import functools
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip.errors import UserError
from clearclip.trunk import Trunk

TERMS = ("qk", "qq", "kk", "vv", "identity")


@dataclass(frozen=True)
class Attention:
    """A sum of softmax attentions, written "qq", "qq+kk" or "kk+gaussian5".

    Each term names what plays query and key ("identity": a token sees only itself). Terms are summed, not
    averaged, as in SCLIP. `gaussian` is the standard deviation, in patches, of NACLIP's neighbourhood, which
    is added to the logits of every softmax.
    """

    terms: tuple[str, ...]
    gaussian: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Attention":
        """Read the written form. Raises UserError naming an unknown term."""
        terms, gaussian = [], None
        for part in text.replace(" ", "").split("+"):
            if part in TERMS:
                terms.append(part)
            elif gaussian is None and (match := re.fullmatch(r"gaussian(\d+\.?\d*)", part)):
                gaussian = float(match[1])
            else:
                raise UserError(f"unknown attention {part!r}; use {', '.join(TERMS)}, sums of them, and gaussian<std>")
        if not terms or gaussian == 0:
            raise UserError(f"attention {text!r} needs a term ({', '.join(TERMS)}) and a standard deviation above 0")
        return cls(tuple(terms), gaussian)

    def __str__(self) -> str:
        return "+".join(self.terms) + ("" if self.gaussian is None else f"+gaussian{self.gaussian:g}")


def gaussian_neighbourhood(grid: tuple[int, int], std: float, prefix: int = 1) -> Tensor:
    """Attention bias [P+N, P+N]: a Gaussian of height 1 around each query patch, 0 for the P prefix tokens (NACLIP)."""
    rows, columns = (torch.arange(length, dtype=torch.float64) for length in grid)
    y, x = (torch.exp(-((axis[:, None] - axis[None]) ** 2) / (2 * std**2)) for axis in (rows, columns))
    return F.pad(torch.kron(y, x), (prefix, 0, prefix, 0))  # the Gaussian is separable: [h·w, h·w]


def logit_bias(attention: Attention, trunk: Trunk) -> Tensor | None:
    """What `attention` adds to the logits of its softmaxes for the windows of a trunk: [P+N, P+N], or nothing."""
    std = attention.gaussian
    if std is None:
        return None
    return trunk.constant(("gaussian", std), lambda: gaussian_neighbourhood(trunk.grid, std, trunk.prefix))


def mix(attention: Attention, q: Tensor, k: Tensor, v: Tensor, trunk: Trunk) -> Tensor:
    """Values [B, heads, P+N, d] averaged as `attention` says, the prefix tokens taking part."""
    return mix_terms(attention.terms, q, k, v, logit_bias(attention, trunk))


def mix_terms(
    terms: tuple[str, ...], q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Values [B, heads, T, d] averaged by each of `terms`, summed: softmax(scale · x yᵀ + bias), scale 1 / √d or given.

    `bias` broadcasts to [B, heads, T, T].
    """
    named = {"q": q, "k": k, "v": v}
    parts = [
        v
        if term == "identity"
        else F.scaled_dot_product_attention(named[term[0]], named[term[1]], v, attn_mask=bias, scale=scale)
        for term in terms
    ]
    return functools.reduce(torch.add, parts)


def self_correlating_output(trunk: Trunk, scale: float = 10.0) -> Tensor:
    """The last block's output [B, P+N, D] with self-correlating recursive attention; its skips and its rest stay.

    What the block's own attention gives, projected, says in a second pass which tokens' values are averaged:
    softmax(scale · cosine) of its heads where that is not negative (RADSeg, arXiv 2511.19704).
    """
    block, (q, k, v) = trunk.backbone.blocks[-1], trunk.qkv()
    first = block.merge_heads(F.scaled_dot_product_attention(q, k, v))  # [B, P+N, D]
    unit = F.normalize(first.float().unflatten(-1, (block.heads, -1)).transpose(1, 2), dim=-1)  # [B, heads, P+N, d]
    weights = similarity_attention(unit @ unit.transpose(-1, -2), beta=0, gamma=scale)
    tokens = trunk.tokens() + block.attention_output(weights.to(v) @ v)
    return tokens + block.mlp(tokens)


def similarity_attention(
    similarity: Tensor, beta: float = 1.0, gamma: float = 3.0, mean: Tensor | None = None
) -> Tensor:
    """Weights [..., N, N], rows summing to 1, from the similarity S [..., N, N] of the patches of a window.

    softmax(γ (S − β · mean S)) over the patches where that is not negative (ProxyCLIP). The mean is each window's
    own, so that a result does not depend on what else is in its batch, unless `mean` is given.
    """
    if mean is None:
        mean = similarity.mean(dim=(-2, -1), keepdim=True)
    shifted = similarity - beta * mean
    excluded = shifted < 0
    excluded.diagonal(dim1=-2, dim2=-1).fill_(False)  # where all patches are alike, a patch keeps itself
    return (gamma * shifted).masked_fill(excluded, -torch.inf).softmax(dim=-1)
