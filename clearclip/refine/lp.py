"""Label propagation as a refinement: that of LPOSS (CVPR 2025, arXiv 2503.19777) after any method."""

from collections.abc import Callable

import torch
from torch import Tensor

from clearclip.backbones import Backbone
from clearclip.products import sums_rows
from clearclip.refine import Refinement, register
from clearclip.refine.propagation import (
    ALPHA,
    NEIGHBOURS,
    PixelGraph,
    Propagation,
    axis_centres,
    check_alpha,
    propagate,
)
from clearclip.text import Queries
from clearclip.view import View
from clearclip.vision import ValueEyes, hashes
from clearclip.windows import Axis, Maps, Plan, resize_matrix

CHUNK_BYTES = 32 << 20  # of pixels' maps at once
DEVICE_CHUNK_BYTES = 256 << 20  # elsewhere than on a CPU


class LP(Refinement):
    """Label propagation between patches, by the values of a vision model's last block.

    The nodes are that model's patches in all windows: a place that lies in two windows is two nodes. Their scores are
    the means of the maps there, and the result is stitched as the scores of windows are.

    Args:
        vfm, vfm_weights: the vision model, as ProxyCLIP reads it, or a function that gives its values.
        neighbours: how many a patch has, itself included.
        alpha: α, below 1: how far scores flow.
    """

    def __init__(
        self,
        backbone: Backbone,
        vfm: str | Callable[[Tensor], Tensor] = "dino_vitb16",
        vfm_weights: str | None = None,
        neighbours: int = NEIGHBOURS,
        alpha: float = ALPHA,
    ):
        super().__init__(backbone)
        self.propagation = Propagation(neighbours, alpha)
        self.external = vfm if callable(vfm) else ValueEyes(backbone, vfm, vfm_weights)

    def files(self) -> dict[str, str]:
        return hashes(vfm=self.external)

    def __call__(self, view: View, maps: Maps, queries: Queries) -> Maps:
        external = torch.cat([trunk.vision(self.external) for trunk in view.trunks])  # [n, D', h, w]
        geometry = zip((view.plan.rows, view.plan.columns), external.shape[2:], maps.shape)
        rows, columns = (self._patch_means(*of_axis) for of_axis in geometry)
        tiled = (rows @ maps.rows) @ maps.scores.float() @ (columns @ maps.columns).T  # [Q, rows · h, columns · w]
        return view.stitcher.maps(self.propagation(view, untile(tiled, view.plan), external), view.plan, maps.shape)

    def _patch_means(self, axis: Axis, patches: int, length: int) -> Tensor:
        device = self.backbone.device
        key = ("patch means", axis, patches, length)
        return self.backbone.constants.get(key, lambda: patch_means(axis, patches, length).to(device))


class LPP(Refinement):
    """Label propagation between pixels, by their colours, at the size to which the image was resized.

    It holds all scores at that size and, for each pixel, as many weights as the square has pixels; elsewhere than on a
    CPU, half as many.

    Args:
        square: the side of the square, an odd number of pixels, in which a pixel has its neighbours.
        tau: the distance of two colours, in Lab divided by (100, 128, 128), at which a weight is 1/e.
        alpha: α, below 1: how far scores flow.
    """

    def __init__(self, backbone: Backbone, square: int = 13, tau: float = 0.01, alpha: float = ALPHA):
        super().__init__(backbone)
        if square < 3 or square % 2 == 0:
            raise ValueError(f"square must be an odd number from 3 on, not {square}")
        if tau <= 0:
            raise ValueError(f"tau must be above 0, not {tau}")
        check_alpha(alpha)
        self.reach, self.tau, self.alpha = square // 2, tau, alpha

    def __call__(self, view: View, maps: Maps, queries: Queries) -> Maps:
        scores = at_size_of_image(view, maps)  # [Q, h, w]
        graph = PixelGraph.of(view.uploaded.to(scores) / 255, self.reach, self.tau)
        size = DEVICE_CHUNK_BYTES
        if sums_rows(scores):
            # The maps of a pixel side by side in memory, as this graph and decoders read them.
            size, scores = CHUNK_BYTES, scores.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        parts = [propagate(graph, part, self.alpha) for part in scores.split(max(1, size // (4 * scores[0].numel())))]
        return view.stitcher.resized(parts[0] if len(parts) == 1 else torch.cat(parts), maps.shape)


def patch_means(axis: Axis, patches: int, length: int) -> Tensor:
    """The matrix [windows · patches, length] that takes maps along one axis to their means over each patch.

    Of a patch that lies in a window's padding it is the value at the border.
    """
    scale = length / axis.length
    centres = axis_centres(axis, patches).flatten()[:, None]
    half = (axis.length if axis.whole else axis.padded) / patches / 2
    low = ((centres - half) * scale).clamp(0, length - 1)
    high = ((centres + half) * scale).clamp(1, length)
    pixels = torch.arange(length)
    covered = (torch.minimum(high, pixels + 1) - torch.maximum(low, pixels)).clamp(min=0)
    return covered / covered.sum(dim=1, keepdim=True)


def untile(scores: Tensor, plan: Plan) -> Tensor:
    """Scores [Q, n·h, m·w] in the layout of `windows.tile` to those of n·m windows, [n·m, Q, h, w]."""
    n, m = len(plan.rows.starts), len(plan.columns.starts)
    tiles = scores.unflatten(2, (m, -1)).unflatten(1, (n, -1))  # [Q, n, h, m, w]
    return tiles.permute(1, 3, 0, 2, 4).flatten(0, 1)


def at_size_of_image(view: View, maps: Maps) -> Tensor:
    """Scores [Q, h, w], float32, at the size of the resized image.

    Where a method gives them at that size they are taken as they are, else from the size of the labels.
    """
    shape = tuple(view.image.shape[1:])
    if tuple(maps.scores.shape[1:]) == shape:
        return maps.scores.float()
    rows, columns = (
        view.backbone.constants.get(("resize", *pair), lambda pair=pair: resize_matrix(*pair).to(maps.rows.device))  # type: ignore[misc]
        for pair in zip(maps.shape, shape)
    )
    return (rows @ maps.rows) @ maps.scores.float() @ (columns @ maps.columns).T


register("LP", LP, "scores flow between patches that look alike to a vision model", "LPOSS, CVPR 2025")
register("LPP", LPP, "scores flow between neighbouring pixels of like colours", "LPOSS, CVPR 2025")
