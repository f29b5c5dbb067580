"""The way of a batch of windows through the blocks as they were trained: states that methods read, computed once."""

from collections.abc import Callable, Collection, Hashable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clearclip.products import attend

if TYPE_CHECKING:
    from clearclip.backbones.base import Backbone, Block

QKV = tuple[Tensor, Tensor, Tensor]


class Trunk:
    """States of one batch of windows, each computed when first asked for.

        trunk = backbone.trunk(images)  # normalised [B, 3, H, W]; nothing computed yet
        trunk.tokens(8)  # [B, P+N, D] entering block 8; trunk.tokens() enters the last
        trunk.qkv(8)  # each [B, heads, P+N, d]

    P is `prefix`, the number of class and register tokens, which come first; N = h·w patches of `grid` (h, w). A
    negative block counts from the last, −1.

    Tokens that were asked for are kept, those on the way to them are not. What else a block computes is kept until the
    trunk has gone past it. So a method that asks in the order of the blocks computes nothing twice; one that goes
    back starts from the nearest tokens kept. `keep` names blocks that somebody will come back to: nothing of them is
    given up.
    """

    def __init__(self, backbone: "Backbone", images: Tensor, position: str | None = None, keep: Collection[int] = ()):
        self.backbone, self.images, self.position = backbone, images, position
        self.grid: tuple[int, int] = backbone.grid(images)
        self.prefix = backbone.prefix_tokens
        self.keep = frozenset(self._index(block) for block in keep)
        self._tokens: dict[int, Tensor] = {}
        self._parts: dict[int, dict[str, Tensor]] = {}  # of qkv, by block and letter
        self._attention: dict[int, Tensor] = {}
        self._mixed: dict[int, Tensor] = {}  # values that its attention has averaged, by block
        self._made: dict[Hashable, Tensor] = {}
        self._others: dict[str, Trunk] = {}

    def tokens(self, block: int = -1) -> Tensor:
        """Tokens [B, P+N, D] that enter a block."""
        block = self._index(block)
        if block not in self._tokens:
            start = max((kept for kept in self._tokens if kept < block), default=None)
            if start is None:
                start, tokens = 0, self.backbone.embed(self.images, self.position)
            else:
                tokens = self._tokens[start]
            for index in range(start, block):
                if index in self.keep:
                    self._tokens[index] = tokens
                tokens = self._run(index, tokens)
            self._tokens[block] = tokens
        return self._tokens[block]

    def block(self, block: int = -1) -> "Block":
        """A block, for tokens of these windows' grid."""
        return self.backbone.blocks[self._index(block)].at(self.grid)

    def output(self) -> Tensor:
        """Tokens [B, P+N, D] of the last block's output as trained."""
        return self.once(("output",), lambda: self._run(len(self.backbone.blocks) - 1, self.tokens()))

    def patches(self, block: int = -1) -> Tensor:
        """Patch tokens [B, N, D] that enter a block."""
        return self.tokens(block)[:, self.prefix :]

    def qkv(self, block: int = -1, only: str = "qkv") -> QKV:
        """Queries, keys and values [B, heads, P+N, d] of a block.

        Those that are not in `only`, such as "qv", are not computed for it: in place of one that nobody else has asked
        for stands a tensor of its shape without values, on the device "meta", with which nothing can be computed.
        """
        block = self._index(block)
        known = self._parts.setdefault(block, {})
        if missing := "".join(letter for letter in "qkv" if letter in only and letter not in known):
            known.update(zip(missing, self.block(block).parts(self.tokens(block), missing)))
        nothing = next(iter(known.values())).to("meta")
        return known.get("q", nothing), known.get("k", nothing), known.get("v", nothing)

    def attention(self, block: int = -1) -> Tensor:
        """Attention of a block as trained, softmax(q kᵀ / √d), [B, heads, P+N, P+N], float32."""
        block = self._index(block)
        if block not in self._attention:
            q, k, _ = self.qkv(block)
            self._attention[block] = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).float().softmax(dim=-1)
        return self._attention[block]

    def add_attention(self, total: Tensor | None, block: int = -1) -> Tensor:
        """A total [B, heads, P+N, P+N], float32, plus the attention of a block, which is not kept: only what it gives.

        None is a new total; another is added to in place.
        """
        block = self._index(block)
        q, k, v = self.qkv(block)
        if total is None:
            total = q.new_zeros(*q.shape[:3], k.shape[2], dtype=torch.float32)
        self._mixed[block] = attend(q, k, v, total=total)
        return total

    def vision(self, model: Callable[[Tensor], Tensor]) -> Tensor:
        """Features [B, D', h', w'] of these windows from a vision model, a function of normalised images."""
        return self.once(model, lambda: model(self.images))

    def once(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """What several readers want of this trunk, such as a method's features, made for the first of them."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def repositioned(self, position: str) -> "Trunk":
        """The trunk of the same windows whose position embedding is resampled in another mode."""
        if position == (self.position or self.backbone.position):
            return self
        if position not in self._others:
            self._others[position] = Trunk(self.backbone, self.images, position, self.keep)
        return self._others[position]

    def summary(self, tokens: Tensor) -> Tensor:
        """The class token [B, 1, D] of tokens [B, P+N, D]; of a backbone without one, the mean patch."""
        return tokens[:, :1] if self.prefix else tokens.mean(dim=1, keepdim=True)

    def project(self, patches: Tensor) -> Tensor:
        """Patches [B, N, D] of the last block's output to features [B, h, w, dim] in the joint space."""
        return self.backbone.project(patches).unflatten(1, self.grid)

    def constant(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """A tensor that depends on the grid alone, from `make` or from an earlier batch, on the backbone's device."""
        backbone = self.backbone
        return backbone.constants.get(
            (key, self.grid, backbone.dtype), lambda: make().to(backbone.device, backbone.dtype)
        )

    def _index(self, block: int) -> int:
        depth = len(self.backbone.blocks)
        if not -depth <= block < depth:
            raise IndexError(f"there is no block {block} in {depth}")
        return block % depth

    def _run(self, index: int, tokens: Tensor) -> Tensor:
        """Tokens through a block, with what is known of it already; what nobody will come back to is given up."""
        if index not in self._parts:
            return self.backbone.run(index, tokens, self.grid)
        block, (q, k, v) = self.block(index), self.qkv(index)
        known, mixed = self._attention.get(index), self._mixed.get(index)
        if mixed is None:
            mixed = attend(q, k, v) if known is None else known.to(v) @ v
        if index not in self.keep and index + 1 < len(self.backbone.blocks):
            del self._parts[index]
            self._attention.pop(index, None)
            self._mixed.pop(index, None)
        tokens = tokens + block.attention_output(mixed)
        return tokens + block.mlp(tokens)
