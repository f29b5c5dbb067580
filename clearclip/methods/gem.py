"""GEM (Bousselham et al., CVPR 2024, arXiv 2312.00878): self-self attention on a second path beside the last blocks.

The image's tokens run through the network as trained. In each of the last blocks their queries, keys and values
also group among themselves, and what that gives is added to a second path, which has no feed-forward network.
The second path is read out.
"""

import torch.nn.functional as F
from torch import Tensor

from clearclip.backbones import Backbone
from clearclip.methods import Method, register
from clearclip.products import attend
from clearclip.trunk import Trunk


class GEM(Method):
    """Patch features of GEM's second path.

    Args:
        depth: the last blocks that it goes through.
        iterations: how often queries, keys and values are averaged over their own attention before it is applied to
            the values.
        cumulative: start the path from the tokens that enter those blocks and sum what every block adds; without it
            only the last block's contribution is kept, as ClearCLIP does.
    """

    def __init__(self, backbone: Backbone, depth: int = 6, iterations: int = 1, cumulative: bool = True):
        super().__init__(backbone)
        if depth < 1 or iterations < 0:
            raise ValueError(f"depth {depth} must be 1 or more, iterations {iterations} 0 or more")
        self.iterations, self.cumulative = iterations, cumulative
        first = max(0, len(backbone.blocks) - depth) if cumulative else len(backbone.blocks) - 1
        self.path = self.blocks = range(first, len(backbone.blocks))

    def features(self, trunk: Trunk) -> Tensor:
        trunk = trunk.repositioned("antialias")
        first, *rest = self.path
        path = self.contribution(trunk, first)
        if self.cumulative:
            path = trunk.tokens(first) + path
        for index in rest:
            path = path + self.contribution(trunk, index)
        return trunk.project(path[:, trunk.prefix :])  # [B, h, w, dim]

    def contribution(self, trunk: Trunk, index: int) -> Tensor:
        """What a block adds to the second path, [B, P+N, D]."""
        block, (q, k, v) = self.backbone.blocks[index], trunk.qkv(index)  # [B, heads, P+N, d]
        # The sharpness follows the image: the mean length of its tokens, over √d.
        sharpness = block.norm(trunk.tokens(index)).norm(dim=-1).mean(dim=-1)[:, None, None, None] * q.shape[-1] ** -0.5
        mixed = [self_self(x, v, sharpness, self.iterations) for x in (q, k, v)]
        return block.attention_output((mixed[0] + mixed[1] + mixed[2]) / 3)


def self_self(x: Tensor, v: Tensor, sharpness: Tensor, iterations: int) -> Tensor:
    """Values v averaged by how alike the unit rows of x are, after x has been averaged so `iterations` times.

    x and v are [B, heads, T, d], `sharpness` multiplies the cosines and is [B, 1, 1, 1].
    """
    for _ in range(iterations):
        x = F.normalize(x, dim=-1)
        x = attend(x * sharpness, x, x, scale=1.0)
    x = F.normalize(x, dim=-1)
    return attend(x * sharpness, x, v, scale=1.0)


register(
    "GEM", GEM,
    "ensemble of query, key and value self-self attention, summed along the last six blocks",
    "Bousselham et al., CVPR 2024",
)  # fmt: skip
