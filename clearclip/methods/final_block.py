"""CLIP, MaskCLIP, SCLIP, NACLIP, ClearCLIP, and every ablation between them.

All five read dense features from the last block, and differ in three choices: which tokens its attention mixes,
how much of the residual stream is kept, and whether its feed-forward network runs. The blocks before it are
untouched. ClearCLIP (Lan et al., ECCV 2024) finds that the residual drowns the local information of the
attention output, and keeps only Wo · softmax(q qᵀ / √d) · v.
"""

from torch import Tensor

from clearclip.attention import Attention, mix
from clearclip.backbone import Backbone, feed_forward, merge_heads, split_heads
from clearclip.methods import Method, check_switches, register


class FinalBlock(Method):
    """Patch features of a re-wired last block.

    `attention` is written as `clearclip.attention.Attention` reads it; `residual` weighs the residual stream
    (1 in CLIP, 0 in ClearCLIP) that is added to the attention output; `feed_forward` keeps the block's second
    half, its own skip connection included.
    """

    def __init__(self, backbone: Backbone, attention: str = "qq", residual: float = 0.0, feed_forward: bool = False):
        super().__init__(backbone)
        self.attention = Attention.parse(str(attention))
        self.residual = float(residual)
        check_switches(feed_forward=feed_forward)
        self.feed_forward = bool(feed_forward)

    def features(self, images: Tensor) -> Tensor:
        grid = self.backbone.grid(images)
        tokens = self.rewire(self.backbone.blocks[-1], self.backbone.trunk(images), grid)  # [B, 1+N, D]
        return self.backbone.project(tokens[:, 1:]).unflatten(1, grid)  # [B, h, w, dim]

    def rewire(self, block, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """The last block's output [B, 1+N, D] under this method's three choices."""
        mixed = merge_heads(block, mix(self.attention, *split_heads(block, tokens), grid))
        out = mixed + self.residual * tokens if self.residual else mixed
        if self.feed_forward:
            out = feed_forward(block, out)
        return out


register(
    "CLIP", FinalBlock,
    "the last block as trained: query-key attention, residual and feed-forward",
    "Radford et al., ICML 2021",
    attention="qk", residual=1.0, feed_forward=True,
)  # fmt: skip
register(
    "MaskCLIP", FinalBlock,
    "values only: every patch attends to itself, no residual, no feed-forward",
    "Zhou et al., ECCV 2022",
    attention="identity", residual=0.0, feed_forward=False,
)  # fmt: skip
register(
    "SCLIP", FinalBlock,
    "sum of query-query and key-key attention, residual and feed-forward kept",
    "Wang et al., ECCV 2024",
    attention="qq+kk", residual=1.0, feed_forward=True,
)  # fmt: skip
register(
    "NACLIP", FinalBlock,
    "key-key attention with a Gaussian neighbourhood, no residual, no feed-forward",
    "Hajimiri et al., WACV 2025",
    attention="kk+gaussian5", residual=0.0, feed_forward=False,
)  # fmt: skip
register(
    "ClearCLIP", FinalBlock,
    "query-query attention, no residual, no feed-forward",
    "Lan et al., ECCV 2024",
    attention="qq", residual=0.0, feed_forward=False,
)  # fmt: skip
