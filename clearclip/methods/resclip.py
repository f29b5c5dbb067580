"""ResCLIP (Yang et al., CVPR 2025, arXiv 2411.15851): residual attention for a re-wired last block, in two parts.

Residual cross-correlation self-attention (RCS) mixes the last block's attention with the query-key attention of
middle blocks, which is local where the last block's is not:

    A = τ ((1 − λ) A_base + λ · mean over blocks 5 to 8 of A_qk), head by head

Semantic feedback refinement (SFR) segments the window first and feeds the labels of its patches back into the logits L
of A_base, before NACLIP's Gaussian:

    A_base = softmax(τ ((1 − λ) L + λ G / max G) + Gaussian)

G says which patches got one label, less so where the way between them leaves it. Habits of the authors' code on which
its numbers depend are reproduced:

- the blocks of RCS are 5 to 8 however many there are (a tower of fewer than ten blocks has their share of its depth);
- A is not normalised again, its rows sum to τ, or to τ (2 − λ) where the base is SCLIP;
- in the first pass every query is a class of its own, synonyms and background words too, PAMR follows, and a pixel
  whose best probability is below a threshold takes the *first* query, even where that is no background;
- the way between two patches is cut into as many steps as the longest way has, but only the first d are walked, d
  being their own distance: of a short way, hardly anything is looked at, and G is not symmetric;
- the rows of G are blurred along the flattened patches, from one row of the image into the next.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip.attention import logit_bias, mix_terms
from clearclip.backbones import Backbone
from clearclip.methods import Method, create_method, register, similarity
from clearclip.methods.final_block import FinalBlock
from clearclip.products import attend
from clearclip.refine.pamr import pamr
from clearclip.trunk import Trunk

BLOCKS = range(5, 9)  # of RCS
STD, TAPS = 5.0, 31  # of the blur, in patches


class ResCLIP(Method):
    """A method of one last block, `base`, with residual attention. The defaults are the constants for ADE20K.

    SFR needs text: `features` has none and leaves it out.

    Args:
        base: SCLIP, NACLIP, ClearCLIP or another of their family, such as ClearCLIP:attention=qk, the authors' vanilla.
        rcs, rcs_tau, rcs_lambda: the first part, its τ and λ.
        sfr, sfr_tau, sfr_lambda: the second part, its τ and λ; with both parts off this is `base`. (In the authors'
            code a comma too many turns both switches into tuples, which are true whatever they hold.)
        confidence: below this probability a pixel of the first pass takes the first query.
        path: whether patches of one label on both sides of another's count less.
    """

    def __init__(
        self,
        backbone: Backbone,
        base: str = "NACLIP",
        rcs: bool = True,
        rcs_tau: float = 2.0,
        rcs_lambda: float = 0.3,
        sfr: bool = True,
        sfr_tau: float = 2.1,
        sfr_lambda: float = 0.7,
        confidence: float = 0.25,
        path: bool = True,
    ):
        super().__init__(backbone)
        chosen = create_method(base, backbone)
        if not isinstance(chosen, FinalBlock):
            raise ValueError(f"base {base!r} must be CLIP, MaskCLIP, SCLIP, NACLIP, ClearCLIP or PEARL")
        self.base = chosen
        shares = {"rcs_lambda": rcs_lambda, "sfr_lambda": sfr_lambda, "confidence": confidence}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {share}")
        self.rcs, self.rcs_tau, self.rcs_lambda = rcs, rcs_tau, rcs_lambda
        self.sfr, self.sfr_tau, self.sfr_lambda = sfr, sfr_tau, sfr_lambda
        self.confidence, self.path = confidence, path
        self.blocks = middle_blocks(len(backbone.blocks)) if rcs else ()

    def prepare(self, text: Tensor, query_class: tuple[int, ...], logit_scale: float) -> Tensor:
        """Text [Q, dim] of length `logit_scale`, by which the first pass multiplies its scores."""
        return logit_scale * text

    def features(self, trunk: Trunk) -> Tensor:
        return self.rewire(trunk, self.residual_values(trunk))

    def scores(self, trunk: Trunk, text: Tensor) -> Tensor:
        """Cosine scores [B, Q, h, w], float32, for prepared text [Q, dim]."""
        unit = F.normalize(text, dim=-1)
        residual = self.residual_values(trunk)
        scores = similarity(self.rewire(trunk, residual), unit)
        if not self.sfr:
            return scores
        labels = self.first_labels(trunk, scores * text.norm(dim=-1)[:, None, None].to(scores))  # [B, h, w]
        return similarity(self.rewire(trunk, residual, self.feedback(labels, trunk)), unit)

    def residual_values(self, trunk: Trunk) -> Tensor | None:
        """The last block's values averaged by the attention of the middle blocks, [B, heads, P+N, d]."""
        if not self.rcs:
            return None
        pairs = [trunk.qkv(index)[:2] for index in self.blocks]  # in the order of the blocks
        _, _, v = trunk.qkv()
        parts = [attend(q, k, v) for q, k in pairs]
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
            scale = self.sfr_tau * (1 - self.sfr_lambda) * scale
            feedback = (self.sfr_tau * self.sfr_lambda * feedback).unsqueeze(1).to(q)
            bias = feedback if bias is None else feedback + bias
        return mix_terms(attention.terms, q, k, v, bias, scale, trunk.prefix)

    def first_labels(self, trunk: Trunk, logits: Tensor) -> Tensor:
        """The first pass's label of each patch, [B, h, w], from logits [B, Q, h, w]: that of most of its pixels."""
        probabilities = (self.first_pass(*window) for window in zip(trunk.images.to(logits.device), logits))
        return torch.stack([self.patch_labels(window, trunk.grid) for window in probabilities])

    def first_pass(self, image: Tensor, logits: Tensor) -> Tensor:
        """Probabilities [Q, H, W] of a window [3, H, W], normalised, from logits [Q, h, w], refined by PAMR.

        PAMR is linear: it may follow the scale, which the authors apply after it.
        """
        full = F.interpolate(logits[None], size=image.shape[1:], mode="bilinear")[0]
        return pamr(image, full).permute(1, 2, 0).softmax(dim=2).permute(2, 0, 1)

    def patch_labels(self, probabilities: Tensor, grid: tuple[int, int]) -> Tensor:
        """The most frequent label of each patch's pixels, [h, w]; of equally many, the smallest."""
        patch, (height, width) = self.backbone.patch_size, grid
        best, labels = probabilities[:, : height * patch, : width * patch].max(dim=0)
        labels = labels.masked_fill(best < self.confidence, 0)
        pixels = labels.unflatten(1, (width, patch)).unflatten(0, (height, patch)).transpose(1, 2).flatten(2)
        counts = pixels.new_zeros(height, width, len(probabilities), dtype=torch.int32)
        counts.scatter_add_(2, pixels, torch.ones_like(pixels, dtype=torch.int32))
        return counts.argmax(dim=2)

    def feedback(self, labels: Tensor, trunk: Trunk) -> Tensor:
        """G / max G of SFR, [B, P+h·w, P+h·w], for labels [B, h, w]; the prefix tokens, first, have none."""
        graph = label_graph(labels, self.path)
        graph = graph / graph.amax(dim=(1, 2), keepdim=True)
        return F.pad(graph, (trunk.prefix, 0, trunk.prefix, 0))


def middle_blocks(depth: int) -> range:
    """The blocks of RCS in a tower of `depth` blocks."""
    return BLOCKS if depth > BLOCKS.stop else range(round(depth * 5 / 12), round(depth * 9 / 12))


def label_graph(labels: Tensor, path: bool = True) -> Tensor:
    """G of SFR, [B, N, N], rows summing to 1, for the labels [B, h, w] of N = h·w patches.

    1 where two patches have one label, less by exp(−d / m) where a patch on the way between them has another; d is
    their Chebyshev distance, m the largest. Then every row is blurred, see `blur`.
    """
    flat = labels.flatten(1)  # [B, N]
    same = flat.unsqueeze(2) == flat.unsqueeze(1)
    edges = same.float()
    if path:
        distance = chebyshev(labels.shape[1], labels.shape[2], labels.device)
        apart = torch.exp(-distance / longest(labels)).to(edges)
        edges = edges * torch.where(connected(labels, distance), 1.0, apart)
    rows = blur(edges)
    return rows / (rows.sum(dim=2, keepdim=True) + 1e-8)


def connected(labels: Tensor, distance: Tensor) -> Tensor:
    """Whether the way from each patch to each other meets no label but the first's, [B, N, N]; see the module's head.

    `distance` [N, N] is how many of its steps are looked at, besides the start.
    """
    batch, height, width = labels.shape
    steps = longest(labels)
    numbers, own = labels.float(), labels.float()[:, :, None, :, None]  # [B, h, 1, w, 1]
    distance = distance.view(height, width, height, width).transpose(1, 2)  # [h, h, w, w], as all that follows
    distance = distance.to(torch.int16, memory_format=torch.contiguous_format)
    apart = torch.zeros(batch, height, height, width, width, dtype=torch.bool, device=labels.device)
    for step in range(steps + 1):
        y, x = (_along(side, step / steps, labels.device) for side in (height, width))  # [h, h], [w, w]
        # What is met, by a product with a row of 0 and one 1 for each two columns: exact, and faster than to pick them.
        picked = F.one_hot(x.flatten(), width).to(numbers)  # [w · w, w]
        met = (numbers[:, y.flatten()] @ picked.T).view(apart.shape)
        apart |= (met != own).logical_and_(distance >= step)
    return ~apart.transpose(2, 3).reshape(batch, height * width, height * width)


def _along(length: int, share: float, device: torch.device) -> Tensor:
    """The place at a share of the way from each of `length` places to each other: [length, length]."""
    places = torch.arange(length, device=device, dtype=torch.float32)
    return (places[:, None] * (1 - share) + places * share).round().long()


def longest(labels: Tensor) -> int:
    """The largest Chebyshev distance of two patches of labels [B, h, w]; 1 for a single patch."""
    return max(*labels.shape[1:], 2) - 1


def chebyshev(height: int, width: int, device: torch.device) -> Tensor:
    """Chebyshev distances [N, N] between the patches of a grid."""
    rows, columns = torch.meshgrid(*(torch.arange(side, device=device) for side in (height, width)), indexing="ij")
    y, x = rows.flatten(), columns.flatten()
    return torch.maximum((y[:, None] - y).abs(), (x[:, None] - x).abs())


def blur(rows: Tensor) -> Tensor:
    """Rows [..., N] convolved with a Gaussian of at most `TAPS` taps, nothing beyond their ends."""
    count = rows.shape[-1]
    reach = min(count, TAPS) // 2  # an even number of taps is made odd by one more
    taps = torch.exp(-(torch.arange(-reach, reach + 1, device=rows.device) ** 2) / (2 * STD**2))
    taps = F.pad(taps / taps.sum(), (count, count))
    index = torch.arange(count, device=rows.device)
    return rows @ taps[index - index[:, None] + reach + count]  # a product in float32: convolutions may use TF32


register(
    "ResCLIP", ResCLIP,
    "attention of middle blocks mixed in (RCS) and a second pass that knows the first one's labels (SFR)",
    "Yang et al., CVPR 2025",
)  # fmt: skip
