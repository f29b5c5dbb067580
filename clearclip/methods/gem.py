"""GEM (Bousselham et al., CVPR 2024): self-self attention on a second path beside the last blocks.

The image's tokens run through the network as trained. In each of the last blocks their queries, keys and values
also group among themselves, and what that gives is added to a second path, which has no feed-forward network.
The second path is read out.
"""

import torch.nn.functional as F
from torch import Tensor

from clearclip.backbone import Backbone, merge_heads, split_heads
from clearclip.methods import Method, check_switches, register


class GEM(Method):
    """Patch features of GEM's second path through the last `depth` blocks.

    `cumulative` starts that path from the tokens that enter them and sums what every block adds; without it only
    the last block's contribution is kept, as ClearCLIP does. `iterations` is the number of times queries, keys
    and values are averaged over their own attention before it is applied to the values.
    """

    def __init__(self, backbone: Backbone, depth: int = 6, iterations: int = 1, cumulative: bool = True):
        super().__init__(backbone)
        if not (isinstance(depth, int) and depth > 0 and isinstance(iterations, int) and iterations >= 0):
            raise ValueError(f"depth {depth!r} must be a whole number from 1 on, iterations {iterations!r} from 0 on")
        check_switches(cumulative=cumulative)
        self.depth = depth if cumulative else 1
        self.iterations = iterations
        self.cumulative = bool(cumulative)

    def features(self, images: Tensor) -> Tensor:
        blocks = self.backbone.blocks
        tokens = self.backbone.embed(images, position="antialias")  # [B, 1+N, D]
        for block in blocks[: -self.depth]:
            tokens = self.backbone.run_block(block, tokens)
        path = tokens if self.cumulative else 0
        for block in blocks[-self.depth :]:
            path = path + self.contribution(block, tokens)
            if block is not blocks[-1]:
                tokens = self.backbone.run_block(block, tokens)
        return self.backbone.project(path[:, 1:]).unflatten(1, self.backbone.grid(images))  # [B, h, w, dim]

    def contribution(self, block, tokens: Tensor) -> Tensor:
        """What a block adds to the second path, [B, 1+N, D], from the tokens [B, 1+N, D] that enter the block."""
        q, k, v = split_heads(block, tokens)  # [B, heads, 1+N, d]
        # The temperature follows the image: the mean length of its tokens, over √d.
        sharpness = block.ln_1(tokens).norm(dim=-1).mean(dim=-1)[:, None, None, None] * q.shape[-1] ** -0.5
        mixed = sum(self_self(x, v, sharpness, self.iterations) for x in (q, k, v)) / 3
        return merge_heads(block, mixed)


def self_self(x: Tensor, v: Tensor, sharpness: Tensor, iterations: int) -> Tensor:
    """Values v averaged by how alike the unit rows of x are, after x has been averaged so `iterations` times.

    x and v are [B, heads, T, d], `sharpness` multiplies the cosines and is [B, 1, 1, 1].
    """
    for _ in range(iterations):
        x = F.normalize(x, dim=-1)
        x = F.scaled_dot_product_attention(x * sharpness, x, x, scale=1.0)
    x = F.normalize(x, dim=-1)
    return F.scaled_dot_product_attention(x * sharpness, x, v, scale=1.0)


register(
    "GEM", GEM,
    "ensemble of query, key and value self-self attention, summed along the last six blocks",
    "Bousselham et al., CVPR 2024",
    depth=6, iterations=1, cumulative=True,
)  # fmt: skip
