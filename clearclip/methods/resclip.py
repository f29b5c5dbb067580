"""ResCLIP (Yang et al., CVPR 2025, arXiv 2411.15851): residual attention for a re-wired last block, in two parts.

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

from clearclip.attention import logit_bias, mix_terms
from clearclip.backbones import Backbone
from clearclip.methods import Method, create_method, register, similarity
from clearclip.methods.final_block import FinalBlock
from clearclip.trunk import Trunk

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
        chosen = create_method(base, backbone)
        if not isinstance(chosen, FinalBlock):
            raise ValueError(f"base {base!r} must be CLIP, MaskCLIP, SCLIP, NACLIP or ClearCLIP")
        self.base = chosen
        for name, share in (("rcs_lambda", rcs_lambda), ("sfr_lambda", sfr_lambda)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {share}")
        self.rcs, self.rcs_tau, self.rcs_lambda = rcs, rcs_tau, rcs_lambda
        self.sfr, self.sfr_tau, self.sfr_lambda = sfr, sfr_tau, sfr_lambda
        depth = len(backbone.blocks)
        self.blocks = range(round(depth * 5 / 12), round(depth * 9 / 12)) if rcs else ()

    def features(self, trunk: Trunk) -> Tensor:
        return self.rewire(trunk, self.residual_values(trunk))

    def scores(self, trunk: Trunk, text: Tensor) -> Tensor:
        residual = self.residual_values(trunk)
        scores = similarity(self.rewire(trunk, residual), text)
        if self.sfr:
            feedback = region_bias(scores.argmax(dim=1), self.decay(trunk), trunk.prefix)  # [B, P+N, P+N]
            scores = similarity(self.rewire(trunk, residual, feedback.to(trunk.tokens())), text)
        return scores

    def residual_values(self, trunk: Trunk) -> Tensor | None:
        """The last block's values averaged by the attention of the middle blocks, [B, heads, P+N, d]."""
        if not self.rcs:
            return None
        pairs = [trunk.qkv(index)[:2] for index in self.blocks]  # in the order of the blocks
        _, _, v = trunk.qkv()
        parts = [F.scaled_dot_product_attention(q, k, v) for q, k in pairs]
        return functools.reduce(torch.add, parts) / len(parts)

    def rewire(self, trunk: Trunk, residual: Tensor | None, feedback: Tensor | None = None) -> Tensor:
        """Patch features [B, h, w, dim] with the residual values and, in a second pass, the first one's feedback."""
        mixed = self.base_attention(trunk, feedback)
        if residual is not None:
            mixed = self.rcs_tau * ((1 - self.rcs_lambda) * mixed + self.rcs_lambda * residual)
        return trunk.project(self.base.output(mixed, trunk)[:, trunk.prefix :])

    def base_attention(self, trunk: Trunk, feedback: Tensor | None) -> Tensor:
        """Values [B, heads, P+N, d] averaged by the base's attention, with feedback [B, P+N, P+N] in its logits."""
        q, k, v = trunk.qkv()
        attention, scale = self.base.attention, q.shape[-1] ** -0.5
        bias = logit_bias(attention, trunk)
        if feedback is not None:
            own, other = self.sfr_tau * (1 - self.sfr_lambda), self.sfr_tau * self.sfr_lambda
            scale = own * scale
            bias = (other * feedback).unsqueeze(1) + (0 if bias is None else own * bias)
        return mix_terms(attention.terms, q, k, v, bias, scale)

    def decay(self, trunk: Trunk) -> Tensor:
        """`chebyshev_decay` of the trunk's grid, float32."""
        return trunk.constant("chebyshev", lambda: chebyshev_decay(trunk.grid)).float()


def region_bias(labels: Tensor, decay: Tensor, prefix: int = 1) -> Tensor:
    """F of SFR, [B, P+h·w, P+h·w], for labels [B, h, w]; the prefix tokens, first, have none."""
    region = regions(labels)
    return F.pad(decay * (region.unsqueeze(2) == region.unsqueeze(1)), (prefix, 0, prefix, 0))


def chebyshev_decay(grid: tuple[int, int]) -> Tensor:
    """exp(−d² / 2σ²) [N, N] for the Chebyshev distance d of the patches of a grid."""
    rows, columns = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    y, x = rows.flatten().float(), columns.flatten().float()
    distance = torch.maximum((y[:, None] - y).abs(), (x[:, None] - x).abs())
    return torch.exp(-distance.square() / (2 * STD**2))


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
)  # fmt: skip
