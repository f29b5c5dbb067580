"""SC-CLIP (Bai et al., IEEE TIP 2025, arXiv 2411.15869): self-calibration from the network's own features.

A few tokens of the last layers are outliers that draw the attention of all others: they are found before the last
block and replaced by their neighbours. The patches of a middle layer are spatially coherent: their similarity
averages the tokens that enter the last block and is half of that block's attention. A shallow layer's similarity
averages what comes out. The last block runs a second time on the sum of the layers between.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip.attention import Attention, mix_terms, similarity_attention
from clearclip.backbones import Backbone, Block
from clearclip.methods import Method, register
from clearclip.trunk import Trunk

NEIGHBOURS = 30  # of a patch, that its local outlier factor compares it with
QUANTILE = 0.95  # patches of a larger factor are outliers
SHARPNESS = 3.0  # of the attention that the middle layer's similarity makes

# Blocks whose outputs are read: (middle, shallow, summed, weight of the class token). Other depths: in proportion.
LAYERS = {12: (8, 3, range(3, 10), 0.3), 24: (16, 6, range(8, 20), 0.1)}


class SCCLIP(Method):
    """Patch features of a calibrated last block, without residual and feed-forward.

    Images of a batch do not meet; the published code takes one at a time.

    Args:
        attention: the other half of the last block's attention, as `clearclip.attention.Attention` reads it, its
            terms averaged: "qq" puts the calibration on ClearCLIP, "qq+kk" on SCLIP. It cannot have a Gaussian, for
            the class token takes no part.
        repair: replace outliers.
        threshold: the cosine below which patches do not average with one another.
        second_pass: add the sum of the layers between.
        class_token: weight of the class token that is added to every patch, by default that of the network's depth.
    """

    def __init__(
        self,
        backbone: Backbone,
        attention: str = "kk",
        repair: bool = True,
        threshold: float = 0.4,
        second_pass: bool = True,
        class_token: float | None = None,
    ):
        super().__init__(backbone)
        self.attention = Attention.parse(attention)
        if self.attention.gaussian is not None:
            raise ValueError(f"attention {attention} cannot have a Gaussian here")
        if not threshold < 1:
            raise ValueError(f"threshold must be below 1, a patch's similarity with itself, not {threshold}")
        self.repair, self.second_pass, self.threshold = repair, second_pass, threshold
        middle, shallow, summed, weight = calibration_layers(len(backbone.blocks))
        # A block's output is what enters the next.
        self.middle, self.shallow, self.summed = middle + 1, shallow + 1, [index + 1 for index in summed]
        self.blocks = sorted({self.middle, self.shallow, *self.summed})
        self.class_token = weight if class_token is None else class_token

    def features(self, trunk: Trunk) -> Tensor:
        shallow = trunk.patches(self.shallow)  # [B, N, D]
        states = [trunk.tokens(index) for index in self.summed] if self.second_pass else []
        middle, patches = trunk.patches(self.middle), trunk.patches()
        if self.repair:
            outliers = find_outliers(patches)  # [B, N]
            patches, middle = (replace_outliers(x, outliers, trunk.grid) for x in (patches, middle))
        similarity = cosine(middle)  # [B, N, N]
        summary = trunk.summary(trunk.tokens())
        out = self.rewire(trunk.block(), average_alike(patches, similarity, self.threshold), summary, similarity)
        if states:
            total = functools.reduce(torch.add, states)
            out = out + self.rewire(trunk.block(), total[:, trunk.prefix :], trunk.summary(total), similarity)
        return trunk.project(average_alike(out, cosine(shallow), self.threshold))  # [B, h, w, dim]

    def rewire(self, block: Block, patches: Tensor, class_token: Tensor, similarity: Tensor) -> Tensor:
        """The last block's output [B, N, D] for patches [B, N, D], with the class token [B, 1, D] added to each."""
        q, k, v = block.qkv(patches)
        coherent = similarity_attention(similarity, gamma=SHARPNESS)
        own = mix_terms(self.attention.terms, q, k, v, prefix=0) / len(self.attention.terms)
        mixed = (coherent.to(v).unsqueeze(1) @ v + own) / 2  # [B, heads, N, d]
        return block.attention_output(mixed) + self.class_token * class_token


def calibration_layers(depth: int) -> tuple[int, int, range, float]:
    """The row of `LAYERS` for a network of `depth` blocks: that of 12 blocks, in proportion, if it has none."""
    if depth in LAYERS:
        return LAYERS[depth]
    middle, shallow, summed, weight = LAYERS[12]
    scale = (depth - 2) / 10  # from the last block but one, whose output is the latest of all
    first, last = round(summed.start * scale), round((summed.stop - 1) * scale)
    return round(middle * scale), round(shallow * scale), range(first, last + 1), weight


def find_outliers(patches: Tensor) -> Tensor:
    """Patches [B, N, D] to whether each is an outlier of its image, [B, N]."""
    factors = outlier_factors(patches)
    return factors > factors.quantile(QUANTILE, dim=1, keepdim=True)


def outlier_factors(patches: Tensor) -> Tensor:
    """Local outlier factors [B, N] of patches [B, N, D], float32: 1 among equals, larger for the isolated.

    On squared distances, and with the reachability distance of the published code: it bounds a distance from below
    by the distance d(p) of p's own farthest neighbour, where Breunig et al. (2000) take the other point's. So it
    always is d(p), and the factor is the mean of d(p) / d(o) over p's neighbours o.
    """
    patches = patches.float()
    count = patches.shape[1]
    if count < 2:
        return torch.ones(patches.shape[:2], device=patches.device)
    itself = torch.eye(count, dtype=torch.bool, device=patches.device)
    distances = squared_distances(patches).masked_fill(itself, torch.inf)
    nearest, neighbours = distances.topk(min(NEIGHBOURS, count - 1), largest=False)  # [B, N, k]
    farthest = nearest[..., -1].clamp(min=1e-10)  # [B, N]
    density = (1 / farthest).unsqueeze(1).expand(-1, count, -1).gather(2, neighbours)
    return farthest * density.mean(dim=-1)


def squared_distances(patches: Tensor) -> Tensor:
    """Between patches [B, N, D]: [B, N, N]."""
    if torch.compiler.is_compiling():  # ONNX has no `cdist`; this is how PyTorch computes it, too
        square = patches.square().sum(dim=-1, keepdim=True)
        return (square + square.mT - 2 * patches @ patches.mT).clamp(min=0)
    return torch.cdist(patches, patches).square()


def replace_outliers(patches: Tensor, outliers: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patches [B, N, D] with each outlier [B, N] replaced by the mean of those of its eight neighbours that are none.

    An outlier among outliers stays as it is.
    """
    maps = patches.transpose(1, 2).unflatten(2, grid)  # [B, D, h, w]
    sound = (~outliers).unflatten(1, grid).unsqueeze(1).to(maps)  # [B, 1, h, w]
    total = F.avg_pool2d(torch.cat([maps * sound, sound], dim=1), 3, stride=1, padding=1, divisor_override=1)
    mean = (total[:, :-1] / total[:, -1:].clamp(min=1)).flatten(2).transpose(1, 2)  # [B, N, D]
    replaced = outliers & (total[:, -1].flatten(1) > 0)
    return torch.where(replaced.unsqueeze(-1), mean, patches)


def cosine(patches: Tensor) -> Tensor:
    """Cosine similarity [B, N, N] of patches [B, N, D], float32."""
    unit = F.normalize(patches.float(), dim=-1)
    return unit @ unit.transpose(1, 2)


def average_alike(patches: Tensor, similarity: Tensor, threshold: float) -> Tensor:
    """Patches [B, N, D] averaged with those whose similarity [B, N, N] is `threshold` or more, weighed by it."""
    weights = similarity.masked_fill(similarity < threshold, 0)
    return (weights / weights.sum(dim=-1, keepdim=True)).to(patches) @ patches


register(
    "SC-CLIP", SCCLIP,
    "outlier tokens replaced; a middle layer's similarity averages tokens and joins key-key attention; two passes",
    "Bai et al., IEEE TIP 2025",
)  # fmt: skip
