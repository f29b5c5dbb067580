"""Trident (Shi et al., ICCV 2025, arXiv 2411.09219): splice, then segment, with CLIP, DINO and SAM.

As in ProxyCLIP, DINO's features say in each window which of CLIP's values are averaged. What comes out is stitched
before it is read; then SAM, which sees the whole image at high resolution, averages it once more: the attention of its
last block, where the values of two patches are alike, says which patches belong together. Trident's third part,
refinement of the labels by SAM's masks, is `+SAM`.

Not run with SAM's real weights: every step agrees with an independent implementation on random arrays.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip.attention import similarity_attention
from clearclip.backbones import Backbone
from clearclip.errors import UserError
from clearclip.methods import Method, register
from clearclip.refine.sam import Square, fit, rounded_up
from clearclip.trunk import Trunk
from clearclip.view import View
from clearclip.vision import Eyes, build_timm, hashes
from clearclip.windows import Plan, average, covering_shape

Seen = tuple[Iterable[Tensor], Tensor]  # of an image: attention [N, N] of each head, and all values [heads, h, w, d]
LARGEST, RAISED = 0.9, 0.6  # bounds of the least cosine of values


class Trident(Method):
    """CLIP's last values, averaged by DINO in each window and by SAM over the whole image, on SAM's grid.

    Images are stretched so that both sides are multiples of the patch, as the stride must be.

    Args:
        vfm, vfm_weights, beta, gamma: as for ProxyCLIP; the mean of the similarity is that of all windows.
        sam: timm's name of a SAM image encoder, or a function from an image [3, H, W], uint8, to what it sees there:
            the last block's attention [N, N] of each head, and its values [heads, h, w, d], N = h·w.
        sam_weights: its file.
        cos_factor: patches count whose values' cosine exceeds this share of a patch's mean cosine.
        keep_negative: a patch whose mean cosine is negative lets more in than itself; else it counts as 0.6.
        halves: the left and the right half of the image go through SAM one after the other, as for Cityscapes.
    """

    def __init__(
        self,
        backbone: Backbone,
        vfm: str | Callable[[Tensor], Tensor] = "dino_vitb16",
        vfm_weights: str | None = None,
        sam: str | Callable[[Tensor], Seen] = "samvit_base_patch16.sa1b",
        sam_weights: str | None = None,
        beta: float = 1.2,
        gamma: float = 3.0,
        cos_factor: float = 1.2,
        keep_negative: bool = True,
        halves: bool = False,
    ):
        super().__init__(backbone)
        self.beta, self.gamma = beta, gamma
        self.cos_factor, self.keep_negative, self.halves = cos_factor, keep_negative, halves
        self.external = vfm if callable(vfm) else Eyes(backbone, vfm, vfm_weights)
        self.sam = sam if callable(sam) else SAMAttention(backbone, sam, sam_weights)

    def files(self) -> dict[str, str]:
        return hashes(vfm=self.external, sam=self.sam)

    def image_features(self, view: View) -> Tensor:
        patch, plan = self.backbone.patch_size, view.plan
        if plan.crop and plan.stride % patch:
            raise UserError(f"Trident needs a stride that is a multiple of the patch, {patch}, not {plan.stride}")
        height, width = view.image.shape[1:]
        features = self.spliced(view.stretched(*covering_shape(height, width, patch, plan.crop)))  # [h, w, D]
        image = rounded_up(view.original, patch)
        half = image.shape[2] // 2
        parts = [image[:, :, :half], image[:, :, half:]] if self.halves else [image]
        mixed = self.correlated(features, [self.sam(part) for part in parts])
        return self.backbone.project(mixed.to(self.backbone.dtype))

    def spliced(self, view: View) -> Tensor:
        """The last block's attention output [h, w, D] of all windows, stitched, float32."""
        external = torch.cat([trunk.vision(self.external) for trunk in view.trunks])  # [n, D', h', w']
        grid = (external.shape[2], external.shape[3])
        unit = F.normalize(external.float().flatten(2), dim=1).transpose(1, 2)  # [n, N, D']
        mean = unit.mean(dim=1).square().sum(dim=-1).mean()  # of the similarities within each window
        batches = zip(view.trunks, unit.split(view.window_batch))
        outputs = torch.cat([self.attended(trunk, part, mean, grid) for trunk, part in batches])  # [n, h', w', D]
        return splice(outputs, view.plan, self.backbone.patch_size)

    def attended(self, trunk: Trunk, unit: Tensor, mean: Tensor, grid: tuple[int, int]) -> Tensor:
        """Windows' values averaged by the similarity of unit features [B, N, D'], projected: [B, h', w', D]."""
        _, _, v = trunk.qkv()
        v = v[:, :, trunk.prefix :].transpose(2, 3).flatten(1, 2).unflatten(2, trunk.grid)  # [B, D, h, w]
        v = F.interpolate(v, size=grid, mode="bilinear").flatten(2).transpose(1, 2)  # [B, h'·w', D]
        # One window at a time: the similarity of a fine grid with itself is large.
        weights = (similarity_attention(f @ f.T, self.beta, self.gamma, mean) for f in unit)
        mixed = torch.stack([some.to(v) @ values for some, values in zip(weights, v)])
        return self.backbone.blocks[-1].attention_output(mixed.unsqueeze(1)).unflatten(1, grid)

    def correlated(self, features: Tensor, seen: list[Seen]) -> Tensor:
        """Features [h, w, D] averaged by what SAM saw of the parts of the image, from left to right: [h', w', D].

        h' and w' are SAM's grid, of all parts together.
        """
        maps = features.permute(2, 0, 1)[None]  # [1, D, h, w]
        mixed = []
        for (attention, values), part in zip(seen, maps.tensor_split(len(seen), dim=3)):
            grid = (values.shape[1], values.shape[2])
            patches = F.interpolate(part, size=grid, mode="bilinear")[0].flatten(1).T  # [N, D]
            weights = correlation(attention, values.flatten(1, 2), self.cos_factor, self.keep_negative)
            mixed.append((weights @ patches).unflatten(0, grid))
        return torch.cat(mixed, dim=1)


def splice(outputs: Tensor, plan: Plan, patch: int) -> Tensor:
    """Windows' features [n, h', w', D] to those of the image, float32, on a grid as fine, but a multiple of CLIP's.

    Features whose grid is no multiple of the patches of a window are resized first, to the nearest that is.
    """
    rows, columns = (side // patch for side in plan.window_shape)
    height, width = outputs.shape[1:3]
    ratio = max(1, round(width / columns))
    if (height, width) != (ratio * rows, ratio * columns):
        maps = outputs.permute(0, 3, 1, 2)
        outputs = F.interpolate(maps, size=(ratio * rows, ratio * columns), mode="bilinear").permute(0, 2, 3, 1)
    return average(outputs, plan, patch, ratio)


def correlation(attention: Iterable[Tensor], values: Tensor, cos_factor: float, keep_negative: bool) -> Tensor:
    """Weights [N, N], rows summing to 1: attention [N, N] of each head where its values [heads, N, d] are alike.

    They are where their cosine exceeds `cos_factor` times the mean over heads and patches of a patch's cosines, at
    most 0.9, so that a patch always counts itself; with `keep_negative` off, a negative bound becomes 0.6.
    """
    unit = F.normalize(values.float(), dim=-1)
    mean = (unit @ unit.mean(dim=1).unsqueeze(-1)).mean(dim=0)  # [N, 1]
    least = cos_factor * mean
    if not keep_negative:
        least = torch.where(least < 0, RAISED, least)
    least = least.clamp(max=LARGEST)
    weights: Tensor | int = 0
    for weight, f in zip(attention, unit):  # head by head, for N is 4096
        weights = weights + torch.where(f @ f.T > least, weight.float(), 0)
    assert isinstance(weights, Tensor)
    return weights / weights.sum(dim=-1, keepdim=True)


class SAMAttention:
    """The last block of SAM's image encoder, through timm: what it attends to in an image, and its values."""

    def __init__(self, backbone: Backbone, name: str, weights: str | None = None):
        from timm.models.vision_transformer_sam import VisionTransformerSAM, get_rel_pos

        model = build_timm(name, weights, option="sam_weights")
        global_attention = isinstance(model, VisionTransformerSAM) and not model.blocks[-1].window_size
        if not global_attention:
            raise UserError(f"{name} is no SAM image encoder; give one of timm's, such as samvit_base_patch16.sa1b")
        self.model: Any = model.to(backbone.device, backbone.dtype).eval().requires_grad_(False)
        self.patch, self.grid = model.patch_embed.patch_size[0], model.pos_embed.shape[1]
        self.square = Square(self.grid * self.patch, model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
        attn = model.blocks[-1].attn
        self.relative = [get_rel_pos(self.grid, self.grid, axis) for axis in (attn.rel_pos_h, attn.rel_pos_w)]

    def __call__(self, image: Tensor) -> Seen:
        """An image [3, H, W], uint8, to attention [N, N], head after head, and values [heads, h, w, d].

        h and w are the patches that the image fills of SAM's square. Rows sum to less than 1: what a patch attends to
        outside of the image is not made up for.
        """
        model, attn = self.model, self.model.blocks[-1].attn
        tokens = model.patch_embed(self.square(image, attn.qkv.weight)[None]) + model.pos_embed  # [1, G, G, D]
        with tokens.device:  # where timm makes the indices of each block's relative positions
            tokens = model.blocks[:-1](model.norm_pre(tokens))
        tokens = model.blocks[-1].norm1(tokens).flatten(1, 2)  # [1, G·G, D]
        q, k, v = attn.qkv(tokens)[0].unflatten(-1, (3, attn.num_heads, -1)).permute(1, 2, 0, 3)  # [heads, G·G, d]
        height, width = (side // self.patch for side in fit(image.shape[1:], self.square.side))
        inside = functools.partial(_inside, grid=self.grid, height=height, width=width)

        def heads() -> Iterator[Tensor]:
            for query, key in zip(q, k):
                logits = attn.scale * query @ key.T + self.position(query)
                yield inside(inside(logits).float().softmax(dim=-1).T).T

        return heads(), v.unflatten(1, (self.grid, self.grid))[:, :height, :width]

    def position(self, query: Tensor) -> Tensor:
        """What a head's queries [G·G, d] add to the logits [G·G, G·G] for the rows and columns between two patches."""
        square = query.unflatten(0, (self.grid, self.grid))  # [G, G, d]
        rows, columns = self.relative  # [G, G, d]
        down = torch.einsum("yxd,ytd->yxt", square, rows)
        across = torch.einsum("yxd,xtd->yxt", square, columns)
        return (down[..., :, None] + across[..., None, :]).flatten(2).flatten(0, 1)


def _inside(rows: Tensor, grid: int, height: int, width: int) -> Tensor:
    """Of rows [G·G, …], one for each patch of a square, those of its upper left part, [h·w, …]."""
    return rows.unflatten(0, (grid, grid))[:height, :width].flatten(0, 1)


register(
    "Trident", Trident,
    "values averaged by a vision model (DINO) in each window, stitched, and averaged again by SAM over the image",
    "Shi et al., ICCV 2025",
)  # fmt: skip
