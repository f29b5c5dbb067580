"""CorrCLIP (Zhang et al., ICCV 2025, arXiv 2411.10086): patches meet within masks.

Masks say which patches may attend to each other, a vision model how much. What the last block makes so of its own
input and of the mean of middle layers is added up with what a class token sees that looks at one mask alone. Masks
whose patches look alike to the vision model count as one. The labels of a mask are then brought to agree
(`CorrCLIP+MAPVOTE`, as published).

Not run with real weights of SAM 2, MetaCLIP and DINO together; the algorithm agrees with golden numbers.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip.backbones import Backbone
from clearclip.masks import MaskProvider, load_masks
from clearclip.methods import Method, register, similarity
from clearclip.trunk import Trunk
from clearclip.view import View
from clearclip.vision import Eyes
from clearclip.windows import Plan

SHARPNESS = 4.0  # what multiplies the similarity before its softmax
MIDDLE = {12: 5, 24: 12, 32: 28}  # how many layers before the last two the mean is of, by the network's depth


class CorrCLIP(Method):
    """Three branches on the grid of the vision model, summed after the network's last normalisation.

    Args:
        masks: where masks come from, as `clearclip.masks.load_masks` reads it: "SAM2", "EoMT" or a folder.
        vfm: the vision model, of whose last block queries and keys are summed, or a function from images in CLIP's
            normalisation [B, 3, H, W] to features [B, D', h', w'].
        vfm_weights: its file.
        merge: the distance up to which masks of a window count as one; None: none do. The default is for DINO: to
            DINOv2 masks are so alike (four images of VOC) that all would be one; with it, give None.
        spatial: weight of the branch of middle layers.
        semantic: weight of the masks' class tokens.

    The smallest number in a window means "no mask", as published, even where a window shows masks alone. A window that
    is no multiple of the patch is padded, and so are its masks, by those of the border.
    """

    def __init__(
        self,
        backbone: Backbone,
        masks: str | MaskProvider = "SAM2",
        vfm: str | Callable[[Tensor], Tensor] = "dino_vitb8",
        vfm_weights: str | None = None,
        merge: float | None = 0.2,
        spatial: float = 1.0,
        semantic: float = 0.5,
    ):
        super().__init__(backbone)
        self.masks = load_masks(masks, backbone.device)
        self.external = vfm if callable(vfm) else QueriesAndKeys(backbone, vfm, vfm_weights)
        self.merge, self.spatial, self.semantic = merge, spatial, semantic
        self.middle = middle_layers(len(backbone.blocks))

    def files(self) -> dict[str, str]:
        return {"masks": self.masks.identity}

    def image_scores(self, view: View, text: Tensor) -> Tensor:
        return view.stitch_scores(similarity(self.window_features(view), text))

    def window_features(self, view: View) -> Tensor:
        ids = cut_ids(self.masks(view).at((view.image.shape[1], view.image.shape[2])), view.plan)  # [n, H, W]
        parts = zip(view.trunks, ids.split(view.window_batch))
        return torch.cat([self.masked_features(trunk, part) for trunk, part in parts])

    def masked_features(self, trunk: Trunk, ids: Tensor) -> Tensor:
        """Features [B, h', w', dim], float32, of windows whose masks are ids [B, H, W] on the CPU.

        How many masks a window shows is found there, so that nothing waits for the device.
        """
        external = trunk.vision(self.external)  # [B, D', h', w']
        grid = (external.shape[2], external.shape[3])
        u = F.normalize(external.float().flatten(2).transpose(1, 2), dim=-1)  # [B, N', D']
        numbers, counts = number_regions(ids, grid)
        size = max(counts)
        numbers = numbers.to(u.device, non_blocking=True)
        count = torch.tensor(counts).to(u.device, non_blocking=True)
        if self.merge is not None:
            numbers = component(merge_distances(u, numbers, count, size), count, self.merge).gather(1, numbers)
        coarse = at_grid(numbers, grid, trunk.grid)  # [B, N]
        summary = self.backbone.project(self.class_tokens(trunk, coarse, size))  # [B, R, dim]
        seen_by = at_grid(coarse, trunk.grid, grid).unsqueeze(2)  # [B, N', 1]
        semantic = summary.gather(1, seen_by.expand(-1, -1, summary.shape[2]))
        middle = torch.stack([trunk.tokens(index) for index in self.middle]).mean(dim=0)
        branches = [self.values(tokens, trunk, grid) for tokens in (trunk.tokens(), middle)]
        # One window at a time: the similarity of a fine grid with itself is large.
        mixed = [
            attention(*window).to(values) @ values for *window, values in zip(u, numbers, torch.cat(branches, dim=-1))
        ]
        main, spatial = (self.output(part) for part in torch.stack(mixed).chunk(2, dim=-1))
        return (main.float() + self.spatial * spatial + self.semantic * semantic).unflatten(1, grid)

    def values(self, tokens: Tensor, trunk: Trunk, grid: tuple[int, int]) -> Tensor:
        """The last block's values [B, N', D] of tokens [B, P+N, D], patches only, on another grid."""
        _, _, v = trunk.block().qkv(tokens)
        v = v[:, :, trunk.prefix :].transpose(2, 3).flatten(1, 2).unflatten(2, trunk.grid)  # [B, D, h, w]
        return F.interpolate(v, size=grid, mode="bilinear").flatten(2).transpose(1, 2)

    def output(self, mixed: Tensor) -> Tensor:
        """Mixed values [B, N', D] through the rest of a last block without residual and feed-forward: [B, N', dim]."""
        return self.backbone.project(self.backbone.blocks[-1].attention_output(mixed.unsqueeze(1)))

    def class_tokens(self, trunk: Trunk, numbers: Tensor, size: int) -> Tensor:
        """Class tokens [B, R, D] after the last block, each of which saw one region and the class token alone.

        `numbers` [B, N] are the regions of the patches, 0 to R − 1 = `size` − 1. Nobody sees these tokens, so that the
        other tokens go through the blocks as always.
        """
        inside = numbers[:, None] == torch.arange(size, device=numbers.device)[:, None]  # [B, R, N]
        inside = inside | ~inside.any(dim=2, keepdim=True)  # those without a patch see all, and are not asked for
        visible = F.pad(inside, (trunk.prefix, 0), value=True).unsqueeze(1)  # [B, 1, R, P+N]
        tokens = trunk.summary(trunk.tokens(0)).expand(-1, size, -1)
        for index in range(len(self.backbone.blocks)):
            block = trunk.block(index)
            (q, _, _), (_, k, v) = block.qkv(tokens), trunk.qkv(index)
            tokens = tokens + block.attention_output(F.scaled_dot_product_attention(q, k, v, attn_mask=visible))
            tokens = tokens + block.mlp(tokens)
        return tokens


class QueriesAndKeys(Eyes):
    """The sum of the last block's queries and keys, [B, D', h', w'], for images in a backbone's normalisation."""

    def __call__(self, images: Tensor) -> Tensor:
        q, k, _ = self.model.last_qkv(self.as_seen(images))
        return q + k


def middle_layers(depth: int) -> range:
    """The blocks whose inputs the spatial branch is the mean of, in a network of `depth` blocks."""
    count = MIDDLE.get(depth, max(1, depth - 4))
    return range(max(0, depth - 1 - count), max(1, depth - 1))


def cut_ids(ids: Tensor, plan: Plan) -> Tensor:
    """Masks' numbers [H, W] in windows [n, height, width], as `windows.cut` cuts images; padding repeats the border."""
    rows, columns = (
        torch.tensor(axis.starts)[:, None] + (torch.arange(axis.padded) - axis.before).clamp(0, axis.size - 1)
        for axis in (plan.rows, plan.columns)
    )  # each [windows, pixels]
    return ids[rows[:, None, :, None], columns[None, :, None, :]].flatten(0, 1)


def number_regions(ids: Tensor, grid: tuple[int, int]) -> tuple[Tensor, list[int]]:
    """Masks [B, H, W] at the patches of a grid, numbered from 0 in their order, [B, h·w]; how many each has."""
    sampled = F.interpolate(ids[:, None].double(), size=grid, mode="nearest").flatten(1)
    found = [window.unique(return_inverse=True) for window in sampled]
    return torch.stack([number for _, number in found]), [len(distinct) for distinct, _ in found]


def at_grid(numbers: Tensor, grid: tuple[int, int], other: tuple[int, int]) -> Tensor:
    """Numbers [B, N] of the patches of a grid at those of another: each patch takes that of the nearest."""
    maps = numbers.unflatten(1, grid).unsqueeze(1).float()
    return F.interpolate(maps, size=other, mode="nearest").flatten(1).long()


def merge_distances(u: Tensor, numbers: Tensor, count: Tensor, size: int) -> Tensor:
    """How unlike the regions of a window are, [B, R, R]: how far their cosine is below the window's largest.

    `u` [B, N, D'] are unit features, `numbers` [B, N] the regions of the patches, `count` [B] how many there are, at
    most R = `size`. Region 0 and those that are not there are infinitely far from all.
    """
    every = torch.arange(size, device=u.device)
    inside = (numbers[:, None] == every[:, None]).float()  # [B, R, N]
    mean = F.normalize(inside @ u, dim=-1)
    known = (every > 0) & (every < count[:, None])  # [B, R]
    cosine = (mean @ mean.transpose(1, 2)).masked_fill(~(known[:, None] & known[:, :, None]), -torch.inf)
    largest = cosine.amax(dim=(1, 2), keepdim=True)
    return torch.where(cosine.isfinite(), largest - cosine, torch.inf)


def component(distances: Tensor, count: Tensor, threshold: float) -> Tensor:
    """The first region [B, R] of those that each is linked to by steps of at most `threshold` of [B, R, R].

    In windows of one or two regions, `count` [B], all stay as they are.
    """
    size = distances.shape[1]
    linked = (distances <= threshold) | torch.eye(size, dtype=torch.bool, device=distances.device)
    for _ in range(max(1, size - 1).bit_length()):  # each step doubles how far links reach
        linked = (linked.float() @ linked.float()) > 0
    first = linked.int().argmax(dim=2)
    return torch.where(count[:, None] > 2, first, torch.arange(size, device=distances.device))


def attention(u: Tensor, numbers: Tensor) -> Tensor:
    """Weights [N, N], rows summing to 1, of a window's patches with unit features [N, D'] in regions [N].

    Patches of one region meet. Those of region 0, which is no mask, meet all whose similarity is above the mean.
    """
    similarity = u @ u.T
    unmasked = numbers == 0
    same = numbers == numbers[:, None]
    allowed = torch.where(unmasked | unmasked[:, None], similarity > similarity.mean(), same)
    allowed.fill_diagonal_(True)  # where all patches are alike, a patch keeps itself
    return (SHARPNESS * similarity).masked_fill(~allowed, -torch.inf).softmax(dim=-1)


register(
    "CorrCLIP", CorrCLIP,
    "patches attend within masks (SAM 2, EoMT, files) by a vision model's similarity; masks have class tokens",
    "Zhang et al., ICCV 2025",
)  # fmt: skip
