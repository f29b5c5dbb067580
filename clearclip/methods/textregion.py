"""TextRegion (Xiao et al., TMLR 2025, arXiv 2505.23769): every mask becomes one token, compared with the text.

The last block's values, of the whole image and of tiles on one canvas, are summed over each mask and go on through the
block's output as the class token would. Patches that look like the rest of the image more than like their own region
are left out first. Pixels under no mask get SCLIP's scores.

Not run with real weights of SAM 2; the algorithm agrees with golden numbers.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearclip.backbones import Backbone
from clearclip.masks import MaskProvider, load_masks
from clearclip.methods import Method, register
from clearclip.methods.final_block import FinalBlock
from clearclip.trunk import Trunk
from clearclip.view import View


class TextRegion(Method):
    """Scores of regions, spread over their pixels.

    The image is seen whole and in tiles, each resized to `tile` pixels, whatever the segmenter's windows are.

    Args:
        masks: where masks come from, as `clearclip.masks.load_masks` reads it: "SAM2.1" (the paper's settings), "EoMT"
            or a folder.
        tile: the side in pixels that the network sees.
        halves: see the left and the right half instead of the whole image, as published for Cityscapes.
        removal: a patch must look more like its regions than like the others, by this much cosine; None: any will do.
        unit_values: sum values of length 1. The authors' code does so with weights in float32 (ViT-H/14), not with
            OpenAI's in half precision, and never where nothing is removed.

    `head` says how a region gets its token; see `AttentionPoolHead` for towers without a class token.
    """

    def __init__(
        self,
        backbone: Backbone,
        masks: str | MaskProvider = "SAM2.1",
        tile: int = 336,
        halves: bool = False,
        removal: float | None = 0.07,
        unit_values: bool = False,
    ):
        super().__init__(backbone)
        if tile < 1 or tile % backbone.patch_size:
            raise ValueError(f"tile must be a multiple of the patch, {backbone.patch_size}, not {tile}")
        self.masks = load_masks(masks, backbone.device)
        self.tile, self.halves, self.removal, self.unit_values = tile, halves, removal, unit_values
        self.head: LastBlockHead | AttentionPoolHead = LastBlockHead(backbone)

    def files(self) -> dict[str, str]:
        return {"masks": self.masks.identity}

    def image_scores(self, view: View, text: Tensor) -> Tensor:
        trunks, layout = self.trunks(view)
        masks = self.regions(view)  # [R, H, W]
        weights, tokens = self.region_tokens(trunks, layout, masks)
        sure = F.normalize(tokens, dim=-1) @ text.to(tokens).T  # [R, Q]
        elsewhere = self.lay_out(torch.cat([self.head.patch_scores(trunk, text) for trunk in trunks]), layout)
        elsewhere = F.interpolate(elsewhere[None], size=view.shape, mode="bilinear")[0]  # [Q, H, W]
        return spread(masks, weights.any(dim=1), self.head.calibrated(sure), elsewhere)

    def trunks(self, view: View) -> tuple[list[Trunk], tuple[int, int]]:
        """The image, whole or in two halves, and its tiles, row by row; and how many rows and columns of tiles."""
        views, layout = look_at(view.pixels, self.tile, self.halves)
        return [self.backbone.trunk(batch) for batch in views.split(view.window_batch)], layout

    def regions(self, view: View) -> Tensor:
        """Masks [R, H, W], float32, 0 outside, 1 and more inside, at least one. The CPU knows how many there are."""
        masks = self.masks(view).regions(view.shape)
        if not len(masks):
            masks = torch.zeros(1, *view.shape)
        return masks.to(self.backbone.device, non_blocking=True)

    def region_tokens(self, trunks: list[Trunk], layout: tuple[int, int], masks: Tensor) -> tuple[Tensor, Tensor]:
        """For masks [R, H, W], how much of each patch is in a region [R, N], and the regions' tokens [R, dim].

        Regions of which nothing is left stay, with weights of 0: that they are, only the device knows.
        """
        values = torch.cat([self.head.values(trunk) for trunk in trunks]).float()  # [n, D, h, w]
        canvas = self.lay_out(values, layout)  # [D, H', W']
        weights = F.interpolate(masks[None], size=canvas.shape[1:], mode="bilinear")[0].clamp(0, 1).flatten(1)  # [R, N]
        patches = canvas.flatten(1).T  # [N, D]
        if self.removal is not None:
            unit = F.normalize(patches, dim=-1)
            weights = weights * belongs(unit, weights > 0, self.removal)
            patches = unit if self.unit_values else patches
        return weights, self.head.tokens(weights, patches).float()

    def lay_out(self, maps: Tensor, layout: tuple[int, int]) -> Tensor:
        """Maps [n, C, h, w] of the views of `trunks` on one canvas, [C, rows · h, columns · w].

        What is seen of the whole image is enlarged, weighed by the head's `share`, and added to the tiles.
        """
        rows, columns = layout
        count, (h, w) = 1 + self.halves, maps.shape[2:]
        tiles = maps[count:].unflatten(0, layout).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2).float()
        middle = [columns * w // 2] * self.halves  # where halves meet, in the middle of a tile if these are odd
        widths = [end - start for start, end in pairwise([0, *middle, columns * w])]
        whole = [
            F.interpolate(one[None].float(), size=(rows * h, width), mode="bilinear")[0]
            for one, width in zip(maps, widths)
        ]
        return tiles + self.head.share * torch.cat(whole, dim=2)

    def image_features(self, view: View) -> Tensor:
        trunks, layout = self.trunks(view)
        weights, tokens = self.region_tokens(trunks, layout, self.regions(view))
        elsewhere = self.lay_out(torch.cat([self.head.patch_features(trunk) for trunk in trunks]), layout)
        masks = weights.unflatten(1, elsewhere.shape[1:])
        return spread(masks, weights.any(dim=1), F.normalize(tokens, dim=-1), elsewhere).permute(1, 2, 0)


class LastBlockHead:
    """Region tokens as a CLIP's class token is made: values summed, then the rest of the last block, normalised.

    Attributes:
        share: how much of what is seen of the whole image is added to the tiles.
    """

    share = 1.0

    def __init__(self, backbone: Backbone):
        self.backbone = backbone
        self.sclip = FinalBlock(backbone, "qq+kk", residual=1.0, feed_forward=True)

    def values(self, trunk: Trunk) -> Tensor:
        """What is summed over a region, [B, D, h, w]."""
        _, _, v = trunk.qkv()
        return v[:, :, trunk.prefix :].transpose(2, 3).flatten(1, 2).unflatten(2, trunk.grid)

    def tokens(self, weights: Tensor, patches: Tensor) -> Tensor:
        """Tokens [R, dim] of regions that have weights [R, N] in patches [N, D]."""
        total = (weights @ patches).to(self.backbone.dtype)  # [R, D]
        return self.backbone.project(self.backbone.blocks[-1].attention_output(total[None, None]))[0]

    def patch_features(self, trunk: Trunk) -> Tensor:
        """Unit features [B, dim, h, w] of patches in no region."""
        return F.normalize(self.sclip.features(trunk).float(), dim=-1).permute(0, 3, 1, 2)

    def patch_scores(self, trunk: Trunk, text: Tensor) -> Tensor:
        """Scores [B, Q, h, w] of patches in no region."""
        return torch.einsum("bdhw,qd->bqhw", self.patch_features(trunk), text.float())

    def calibrated(self, cosines: Tensor) -> Tensor:
        """Scores of regions [R, Q] from their cosines."""
        return cosines


class AttentionPoolHead:
    """Region tokens of towers that end in attention pooling (SigLIP2, PE-Core).

    The patches' values are averaged over a region, all weighing the same, and go on through the pool's output; the
    pool's query, its keys and its feed-forward network play no part. Not run with such a tower: none is a backbone
    here yet. Give it to a method as `method.head`.

    Args:
        value, output: the pool's projections, [..., D] to [..., D] and to [..., dim].
        norm: the tower's normalisation after its last block.
        scale, bias: what multiplies cosines, and is added, in a sigmoid model.
    """

    share = 0.5

    def __init__(
        self,
        value: Callable[[Tensor], Tensor],
        output: Callable[[Tensor], Tensor],
        norm: Callable[[Tensor], Tensor],
        scale: float = 1.0,
        bias: float = 0.0,
    ):
        self.value, self.output, self.norm, self.scale, self.bias = value, output, norm, scale, bias

    @classmethod
    def of_timm(cls, pool: Any, norm: Callable[[Tensor], Tensor], **options: float) -> "AttentionPoolHead":
        """Of timm's `AttentionPoolLatent`, whose one projection gives keys, then values."""
        _, weight = pool.kv.weight.chunk(2)
        _, bias = pool.kv.bias.chunk(2)
        return cls(lambda tokens: F.linear(tokens, weight, bias), pool.proj, norm, **options)

    @classmethod
    def of_torch(
        cls, attention: nn.MultiheadAttention, projection: Tensor, norm: Callable[[Tensor], Tensor], **options: float
    ) -> "AttentionPoolHead":
        """Of PE-Core's pool: torch's attention, then a projection [D, dim]."""
        _, _, weight = attention.in_proj_weight.chunk(3)
        _, _, bias = attention.in_proj_bias.chunk(3)

        def output(mixed: Tensor) -> Tensor:
            return attention.out_proj(mixed) @ projection

        return cls(lambda tokens: F.linear(tokens, weight, bias), output, norm, **options)

    def values(self, trunk: Trunk) -> Tensor:
        """The tower's tokens [B, D, h, w]."""
        tokens = self.norm(trunk.output())
        return tokens[:, trunk.prefix :].transpose(1, 2).unflatten(2, trunk.grid)

    def tokens(self, weights: Tensor, patches: Tensor) -> Tensor:
        """Tokens [R, dim] of regions that have weights [R, N] in patches [N, D]."""
        inside = (weights > 0).to(patches)
        inside = inside / inside.sum(dim=1, keepdim=True).clamp(min=1)
        return self.output(inside @ self.value(patches))

    def patch_features(self, trunk: Trunk) -> Tensor:
        """Unit features [B, dim, h, w] of patches in no region: each is one of its own."""
        features = self.output(self.value(self.values(trunk).permute(0, 2, 3, 1)))
        return F.normalize(features.float(), dim=-1).permute(0, 3, 1, 2)

    def patch_scores(self, trunk: Trunk, text: Tensor) -> Tensor:
        """Scores [B, Q, h, w] of patches in no region."""
        return self.calibrated(torch.einsum("bdhw,qd->bqhw", self.patch_features(trunk), text.float()))

    def calibrated(self, cosines: Tensor) -> Tensor:
        """Scores of regions [R, Q] from their cosines."""
        return self.scale * cosines + self.bias


def look_at(pixels: Tensor, side: int, halves: bool = False) -> tuple[Tensor, tuple[int, int]]:
    """An image [3, H, W] as squares [n, 3, side, side], and how many rows and columns of tiles there are.

    First comes the whole image, or its halves, then the tiles row by row, as many as fit into it and at least one.
    """
    height, width = pixels.shape[1:]
    rows, columns = max(height // side, 1), max(width // side, 1)
    h, w = -(-height // rows), -(-width // columns)
    parts = [pixels[:, :, : width // 2], pixels[:, :, width // 2 :]] if halves else [pixels]
    for y in (min(row * h, height - h) for row in range(rows)):
        parts += [pixels[:, y : y + h, x : x + w] for x in (min(c * w, width - w) for c in range(columns))]
    size = (side, side)
    squares = [F.interpolate(part[None], size=size, mode="bicubic", antialias=True)[0] for part in parts]
    return torch.stack(squares), (rows, columns)


def belongs(unit: Tensor, member: Tensor, threshold: float) -> Tensor:
    """Whether unit patches [N, D] look like the regions [R, N] that they are in, [N].

    That is so where the mean over these of the mean cosine to a region's patches exceeds the same over all other
    regions by `threshold` or more.
    """
    inside = member.float()
    size = inside.sum(dim=1, keepdim=True)
    likeness = (inside @ unit) @ unit.T / size.clamp(min=1)  # [R, N], 0 of regions that have no patch
    count = inside.sum(dim=0)  # of regions that a patch is in
    others = (size > 0).sum() - count
    own = (likeness * inside).sum(dim=0) / (count + 1e-9)
    return own - (likeness * (1 - inside)).sum(dim=0) / (others + 1e-9) >= threshold


def spread(masks: Tensor, kept: Tensor, scores: Tensor, elsewhere: Tensor) -> Tensor:
    """Scores [R, Q] of regions at their pixels, summed where masks [R, H, W], cut at 1, overlap: [Q, H, W].

    Regions that are not `kept` [R] count as none, and pixels in no region take what is there `elsewhere` [Q, H, W].
    """
    masks = masks.clamp(max=1) * kept[:, None, None]
    summed = torch.einsum("rhw,rq->qhw", masks, scores)
    return torch.where(masks.any(dim=0), summed, elsewhere)


register(
    "TextRegion", TextRegion,
    "every mask (SAM 2, EoMT, files) is one token: values summed over it, compared with the text",
    "Xiao et al., TMLR 2025",
)  # fmt: skip
