"""CLIP, MaskCLIP, SCLIP, NACLIP, ClearCLIP (arXiv 2407.12442), PEARL (2603.21528), and every ablation between them.

All of them read dense features from the last block, and differ in three choices: which tokens its attention mixes,
how much of the residual stream is kept, and whether its feed-forward network runs. The blocks before it are
untouched. ClearCLIP (Lan et al., ECCV 2024) finds that the residual drowns the local information of the
attention output, and keeps only Wo · softmax(q qᵀ / √d) · v.
"""

from torch import Tensor

from clearclip.attention import Attention, mix
from clearclip.backbones import Backbone
from clearclip.backbones.base import Block
from clearclip.methods import Method, register
from clearclip.trunk import Trunk


class FinalBlock(Method):
    """Patch features of a re-wired last block.

    Args:
        attention: which tokens it mixes, as `clearclip.attention.Attention` reads it.
        residual: weight of the residual stream that is added to the attention output: 1 in CLIP, 0 in ClearCLIP.
        feed_forward: whether the block's second half runs, its own skip connection included.
    """

    def __init__(self, backbone: Backbone, attention: str = "qq", residual: float = 0.0, feed_forward: bool = False):
        super().__init__(backbone)
        self.attention = Attention.parse(attention)
        self.reads = self.attention.reads  # once, where no tracer looks on
        self.residual, self.feed_forward = residual, feed_forward

    def features(self, trunk: Trunk) -> Tensor:
        mixed = mix(self.attention, *trunk.qkv(only=self.reads), trunk)  # [B, heads, P+N, d]
        return trunk.project(self.output(mixed, trunk)[:, trunk.prefix :])  # [B, h, w, dim]

    def output(self, mixed: Tensor, trunk: Trunk) -> Tensor:
        """The block's output [B, P+N, D] for mixed values [B, heads, P+N, d]."""
        return rewired(self.backbone.blocks[-1], mixed, trunk.tokens(), self.residual, self.feed_forward)


def rewired(block: Block, mixed: Tensor, tokens: Tensor, residual: float, feed_forward: bool) -> Tensor:
    """A block's output [B, T, D] for mixed values [B, heads, T, d] of tokens [B, T, D], all of a window's or some."""
    out = block.attention_output(mixed)
    if residual:
        out = out + residual * tokens
    return out + block.mlp(out) if feed_forward else out


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
    attention="identity",
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
    attention="kk+gaussian5",
)  # fmt: skip
register("ClearCLIP", FinalBlock, "query-query attention, no residual, no feed-forward", "Lan et al., ECCV 2024")
register(
    "PEARL", FinalBlock,
    "query-key attention with keys rotated onto queries (Procrustes), some key-key; no residual, no feed-forward",
    "CVPR 2026, arXiv 2603.21528",
    attention="pearl0.08",
)  # fmt: skip
