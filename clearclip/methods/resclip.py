"""ResCLIP (Yang et al., CVPR 2025): residual attention for a re-wired last block, in two parts.

Residual cross-correlation self-attention (RCS) mixes the last block's attention with the query-key attention of
middle blocks, which is local where the last block's is not:

    A = τ ((1 − λ) A_base + λ · mean over middle blocks of A_qk)

Semantic feedback refinement (SFR) segments the window first and then favours, within the softmax of A_base, patches
that the first pass put into the same connected region:

    A_base = softmax(τ ((1 − λ) L + λ F)),    F(p, o) = exp(−d(p, o)² / 2σ²) where p and o are of one region, else 0

L are the base's logits and d is the Chebyshev distance in patches. SFR is a reconstruction, not verified: its parts
(one class, connected, decaying with that distance, weighed by τ and λ before the softmax) are the paper's, how they
are put together is not known to be. The paper's confidence threshold, below which a patch takes no part in its
first pass, is left out: it differs for every data set.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip.attention import gaussian_neighbourhood, mix_terms
from clearclip.backbone import Backbone, feed_forward, merge_heads, split_heads
from clearclip.methods import Method, check_switches, create_method, register
from clearclip.methods.final_block import FinalBlock

STD = 5.0  # of the decay with distance, in patches: that of NACLIP's Gaussian


class ResCLIP(Method):
    """A method of one last block, `base` (SCLIP, NACLIP, ClearCLIP …), with residual attention.

    `rcs` and `sfr` switch the two parts, each with its τ and λ; with both off this is `base`. (In the authors' code
    a comma too many turns both switches into tuples, which are true whatever they hold.) The middle blocks are
    the paper's four, indices 5 to 8 of 12, and their share of other depths. SFR needs text: `features` has none
    and leaves it out.
    """

    def __init__(
        self,
        backbone: Backbone,
        base: str = "NACLIP",
        rcs: bool = True,
        rcs_tau: float = 2.0,
        rcs_lambda: float = 0.5,
        sfr: bool = True,
        sfr_tau: float = 2.0,
        sfr_lambda: float = 0.65,
    ):
        super().__init__(backbone)
        self.base = create_method(str(base), backbone)
        if not isinstance(self.base, FinalBlock):
            raise ValueError(f"base {base!r} must be CLIP, MaskCLIP, SCLIP, NACLIP or ClearCLIP")
        check_switches(rcs=rcs, sfr=sfr)
        for name, share in (("rcs_lambda", rcs_lambda), ("sfr_lambda", sfr_lambda)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {share!r}")
        self.rcs, self.rcs_tau, self.rcs_lambda = bool(rcs), float(rcs_tau), float(rcs_lambda)
        self.sfr, self.sfr_tau, self.sfr_lambda = bool(sfr), float(sfr_tau), float(sfr_lambda)
        depth = len(backbone.blocks)
        self.middle = range(round(depth * 5 / 12), round(depth * 9 / 12))

    def features(self, images: Tensor) -> Tensor:
        return self.rewire(*self.trunk(images), self.backbone.grid(images))

    def scores(self, images: Tensor, text: Tensor) -> Tensor:
        grid = self.backbone.grid(images)
        tokens, middle = self.trunk(images)
        scores = self.similarity(self.rewire(tokens, middle, grid), text)
        if self.sfr:
            feedback = region_bias(scores.argmax(dim=1)).to(tokens)  # [B, 1+N, 1+N]
            scores = self.similarity(self.rewire(tokens, middle, grid, feedback), text)
        return scores

    def similarity(self, features: Tensor, text: Tensor) -> Tensor:
        """Features [B, h, w, dim] and unit text [Q, dim] to cosine scores [B, Q, h, w], float32."""
        return (F.normalize(features.float(), dim=-1) @ text.float().T).permute(0, 3, 1, 2)

    def trunk(self, images: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The tokens [B, 1+N, D] that enter the last block; queries and keys of the middle blocks."""
        tokens, middle = self.backbone.embed(images), []
        for index, block in enumerate(self.backbone.blocks[:-1]):
            q, k, v = split_heads(block, tokens)
            if self.rcs and index in self.middle:
                middle.append((q, k))
            mixed = merge_heads(block, F.scaled_dot_product_attention(q, k, v))
            tokens = feed_forward(block, tokens + mixed)
        return tokens, middle

    def rewire(self, tokens: Tensor, middle: list, grid: tuple[int, int], feedback: Tensor | None = None) -> Tensor:
        """Tokens [B, 1+N, D] that enter the last block to patch features [B, h, w, dim]."""
        block, base = self.backbone.blocks[-1], self.base
        q, k, v = split_heads(block, tokens)
        mixed = self.base_attention(q, k, v, grid, feedback)
        if self.rcs:
            residual = sum(F.scaled_dot_product_attention(q, k, v) for q, k in middle) / len(middle)
            mixed = self.rcs_tau * ((1 - self.rcs_lambda) * mixed + self.rcs_lambda * residual)
        out = merge_heads(block, mixed) + base.residual * tokens
        if base.feed_forward:
            out = feed_forward(block, out)
        return self.backbone.project(out[:, 1:]).unflatten(1, grid)

    def base_attention(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], feedback: Tensor | None) -> Tensor:
        """Values [B, heads, 1+N, d] averaged by the base's attention, with feedback [B, 1+N, 1+N] in its logits."""
        attention, scale, bias = self.base.attention, q.shape[-1] ** -0.5, None
        if attention.gaussian is not None:
            bias = gaussian_neighbourhood(grid, attention.gaussian, q.device, q.dtype)
        if feedback is not None:
            own, other = self.sfr_tau * (1 - self.sfr_lambda), self.sfr_tau * self.sfr_lambda
            scale = own * scale
            bias = (other * feedback).unsqueeze(1) + (0 if bias is None else own * bias)
        return mix_terms(attention.terms, q, k, v, bias, scale)


def region_bias(labels: Tensor) -> Tensor:
    """F of SFR, [B, 1+h·w, 1+h·w], for labels [B, h, w]; the class token, first, has none."""
    region = regions(labels)
    decay = chebyshev_decay(tuple(labels.shape[1:]), labels.device)
    return F.pad(decay * (region.unsqueeze(2) == region.unsqueeze(1)), (1, 0, 1, 0))


@functools.lru_cache(maxsize=16)
def chebyshev_decay(grid: tuple[int, int], device: torch.device) -> Tensor:
    """exp(−d² / 2σ²) [N, N] for the Chebyshev distance d of the patches of a grid."""
    rows, columns = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    y, x = rows.flatten().float(), columns.flatten().float()
    distance = torch.maximum((y[:, None] - y).abs(), (x[:, None] - x).abs())
    return torch.exp(-distance.square() / (2 * STD**2)).to(device)


def regions(labels: Tensor) -> Tensor:
    """Labels [B, h, w] to the region of each patch, [B, h·w]: connected patches of one label have one number.

    Neighbours are the eight at Chebyshev distance 1. The number is the index of the region's first patch.
    """
    batch, height, width = labels.shape

    def neighbourhoods(maps: Tensor) -> Tensor:  # [B, h, w] to [B, 9, h·w], −1 beyond the border
        return F.unfold(F.pad(maps.float(), (1, 1, 1, 1), value=-1).unsqueeze(1), 3)

    alike = neighbourhoods(labels) == labels.flatten(1).unsqueeze(1)
    region = torch.arange(height * width, device=labels.device).expand(batch, -1)
    while True:
        around = neighbourhoods(region.unflatten(1, (height, width))).long()
        smallest = around.masked_fill(~alike, height * width).amin(dim=1)
        smallest = smallest.gather(1, smallest)  # the region's own region: lengths of paths halve
        if torch.equal(smallest, region):
            return region
        region = smallest


register(
    "ResCLIP", ResCLIP,
    "attention of middle blocks mixed in (RCS) and a second pass favouring the first one's regions (SFR: unverified)",
    "Yang et al., CVPR 2025",
    base="NACLIP", rcs=True, rcs_tau=2.0, rcs_lambda=0.5, sfr=True, sfr_tau=2.0, sfr_lambda=0.65,
)  # fmt: skip
