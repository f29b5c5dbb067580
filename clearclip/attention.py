"""Token mixing: which tokens the last block's values are averaged over.

`TERMS` holds what an attention can be made of. One more is a function in it:

    TERMS["kv"] = lambda q, k, v, prefix: (k, v)  # softmax(k vᵀ / √d), now a part of every written attention
"""

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip.errors import UserError
from clearclip.products import attend
from clearclip.trunk import Trunk

Pair = tuple[Tensor, Tensor]
# From q, k, v [B, heads, T, d], and how many prefix tokens are the first of T, to what plays query and key,
# [B, heads, T, any], whose products the softmax takes; None: a token sees only itself. A term that is written with a
# number after it, as pearl0.3, takes that number too.
Term = Callable[..., Pair | None]

NEWTON_SCHULZ_STEPS = 5


@dataclass(frozen=True)
class Attention:
    """A sum of softmax attentions, written "qq", "qq+kk", "kk+gaussian5" or "pearl0.08".

    Each term names what plays query and key ("identity": a token sees only itself). Terms are summed, not
    averaged, as in SCLIP. `gaussian` is the standard deviation, in patches, of NACLIP's neighbourhood, which
    is added to the logits of every softmax.
    """

    terms: tuple[str, ...]
    gaussian: float | None = None

    @functools.cached_property
    def reads(self) -> str:
        """Which of queries, keys and values it reads, such as "qv". A term that computes with any may read all."""
        q, k, v = (torch.empty(1, 1, 2, 4, device="meta") for _ in "qkv")
        letters = {"v"}
        for term in self.terms:
            try:
                pair = find_term(term)(q, k, v, 1)  # type: ignore[misc]
            except Exception:  # a term of one's own that computes what cannot be without values
                return "qkv"
            for part in pair or ():
                letters.update([letter for letter, x in zip("qkv", (q, k, v)) if x is part] or "qkv")
        return "".join(sorted(letters, key="qkv".index))

    @classmethod
    def parse(cls, text: str) -> "Attention":
        """Read the written form. Raises UserError naming an unknown term."""
        terms, gaussian = [], None
        for part in text.replace(" ", "").split("+"):
            if gaussian is None and (match := re.fullmatch(r"gaussian(\d+\.?\d*)", part)):
                gaussian = float(match[1])
            elif find_term(part):
                terms.append(part)
            else:
                raise UserError(f"unknown attention {part!r}; use {', '.join(TERMS)}, sums of them, and gaussian<std>")
        if not terms or gaussian == 0:
            raise UserError(f"attention {text!r} needs a term ({', '.join(TERMS)}) and a standard deviation above 0")
        return cls(tuple(terms), gaussian)

    def __str__(self) -> str:
        return "+".join(self.terms) + ("" if self.gaussian is None else f"+gaussian{self.gaussian:g}")


def procrustes(
    q: Tensor, k: Tensor, v: Tensor, prefix: int, alpha: float = 0.08, steps: int | None = NEWTON_SCHULZ_STEPS
) -> Pair:
    """PEARL's term (arXiv 2603.21528): keys rotated onto queries, and a share `alpha` of key-key attention, float32.

    The logits are q (k R)ᵀ + α (k − k̄)(k − k̄)ᵀ. R [B, heads, d, d] is the rotation that best carries the keys, less
    k̄, onto the queries, less q̄; both means weigh a patch by the length of its query and prefix tokens not at all.
    """
    q, k = q.float(), k.float()
    weights = q.norm(dim=-1, keepdim=True)  # [B, heads, T, 1]
    weights = torch.cat([torch.zeros_like(weights[:, :, :prefix]), weights[:, :, prefix:]], dim=2)
    weights = weights / (weights.sum(dim=2, keepdim=True) + 1e-6)
    q_centred, k_centred = (x - (weights * x).sum(dim=2, keepdim=True) for x in (q, k))
    rotation = polar(k_centred.mT @ q_centred, steps)
    structure = alpha**0.5 * k_centred
    return torch.cat([q, structure], dim=-1), torch.cat([k @ rotation, structure], dim=-1)


def polar(matrix: Tensor, steps: int | None = NEWTON_SCHULZ_STEPS) -> Tensor:
    """The orthogonal factor M (MᵀM)^(−1/2) of matrices M [..., d, d], by steps of Newton and Schulz; None: exactly.

    After few steps it is only nearly orthogonal: PEARL's published numbers are those of five.
    """
    if steps is None:
        left, _, right = torch.linalg.svd(matrix)
        return left @ right
    gram = matrix.mT @ matrix
    size = gram.norm(dim=(-2, -1), keepdim=True)
    identity = torch.eye(matrix.shape[-1], device=matrix.device, dtype=matrix.dtype)
    y, z = gram / size + 1e-6 * identity, identity
    for _ in range(steps):
        step = (3 * identity - z @ y) / 2
        y, z = y @ step, step @ z
    return matrix @ z / size.sqrt()


TERMS: dict[str, Term] = {
    "qk": lambda q, k, v, prefix: (q, k),
    "qq": lambda q, k, v, prefix: (q, q),
    "kk": lambda q, k, v, prefix: (k, k),
    "vv": lambda q, k, v, prefix: (v, v),
    "identity": lambda q, k, v, prefix: None,
    "pearl": procrustes,
    "pearlsvd": functools.partial(procrustes, steps=None),
}


def find_term(text: str) -> Term | None:
    """The function of a term as it is written, "qq" or "pearl0.3"; None where there is none."""
    if text in TERMS:
        return TERMS[text]
    match = re.fullmatch(r"([a-z]+)(\d+\.?\d*)", text)
    term = TERMS.get(match[1]) if match else None
    if match is None or term is None or "alpha" not in inspect.signature(term).parameters:
        return None
    return functools.partial(term, alpha=float(match[2]))


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
    return mix_terms(attention.terms, q, k, v, logit_bias(attention, trunk), prefix=trunk.prefix)


def mix_terms(
    terms: tuple[str, ...],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    scale: float | None = None,
    prefix: int = 1,
) -> Tensor:
    """Values [B, heads, T, d] averaged by each of `terms`, summed: softmax(scale · x yᵀ + bias), scale 1 / √d or given.

    `bias` broadcasts to [B, heads, T, T]. The first `prefix` of the T tokens are no patches.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return functools.reduce(torch.add, [_average(term, q, k, v, bias, scale, prefix) for term in terms])


def _average(term: str, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, prefix: int) -> Tensor:
    function = find_term(term)
    assert function is not None, term
    pair = function(q, k, v, prefix)
    if pair is None:
        return v
    x, y = pair
    return attend(x, y, v.to(x), bias, scale).to(v)


def self_correlating_output(trunk: Trunk, scale: float = 10.0) -> Tensor:
    """The last block's output [B, P+N, D] with self-correlating recursive attention; its skips and its rest stay.

    What the block's own attention gives, projected, says in a second pass which tokens' values are averaged:
    softmax(scale · cosine) of its heads where that is not negative (RADSeg, arXiv 2511.19704).
    """
    block, (q, k, v) = trunk.backbone.blocks[-1], trunk.qkv()
    first = block.merge_heads(attend(q, k, v))  # [B, P+N, D]
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
    others = ~torch.eye(shifted.shape[-1], dtype=torch.bool, device=shifted.device)
    excluded = (shifted < 0) & others  # where all patches are alike, a patch keeps itself
    return (gamma * shifted).masked_fill(excluded, -torch.inf).softmax(dim=-1)
