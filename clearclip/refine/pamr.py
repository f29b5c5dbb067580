"""PAMR (Araslanov & Roth, CVPR 2020, arXiv 2005.08104): pixel-adaptive mask refinement.

Every pixel takes the average of pixels around it, weighed by how like its own their colours are, several times
over. Labels then follow the edges of the image.
"""

import functools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip.backbones import Backbone
from clearclip.decode import DEVICE_BAND_BYTES
from clearclip.products import sum_rows, sums_rows
from clearclip.refine import Refinement, register
from clearclip.text import Queries
from clearclip.view import View
from clearclip.windows import LateMaps, Maps

CHUNK_BYTES = 4 << 20  # of maps at once, where they are moved as a whole on a CPU: its cache holds them
TOGETHER, CLASSES = 8, 32  # classes from which on those of a pixel are summed together, and at once
SCORE_BYTES = 1 << 30  # of all queries at full size; where they need more, no more than some are there at a time
LEAST = 1e-30  # of a variance, nothing beside 1e-8: roots of 0 take PyTorch several times as long on a CPU
CONTRAST = 0.1  # differences count in units of this share of the local standard deviation
# The eight neighbours of a pixel, as rows and columns from it.
NEIGHBOURS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]


class PAMR(Refinement):
    """PAMR at the size of the labels, which holds the scores of all queries at that size, up to 1 GiB of them.

    Args:
        iterations: how often every pixel takes the mean of those around it.
        dilations: how far, in pixels, these lie.
    """

    def __init__(self, backbone: Backbone, iterations: int = 10, dilations: tuple[int, ...] = (8, 16)):
        super().__init__(backbone)
        if iterations < 1 or not dilations or min(dilations) < 1:
            raise ValueError(f"iterations {iterations} and dilations {dilations} must be 1 or more")
        self.iterations, self.dilations = iterations, dilations

    def __call__(self, view: View, maps: Maps, queries: Queries) -> Maps:
        pixels = view.resized_pixels(maps.shape)  # [3, H, W]
        late = LateMaps(maps, Diffusion(pixels, self.iterations, self.dilations))
        fits = 4 * len(maps.scores) * pixels[0].numel() <= SCORE_BYTES
        return Maps.of(late.full()) if fits else late


class Diffusion:
    """PAMR of any maps [C, H, W] by one image [3, H, W], see `pamr`."""

    def __init__(self, image: Tensor, iterations: int = 10, dilations: Sequence[int] = (8, 16)):
        self.iterations, self.dilations = iterations, dilations
        self.weights = affinity(image.float().contiguous(), dilations)  # [8·dilations, H, W]

    def __call__(self, maps: Tensor) -> Tensor:
        maps = maps.float()
        if len(maps) < TOGETHER or not sums_rows(maps):
            at_once = CHUNK_BYTES if maps.device.type == "cpu" else DEVICE_BAND_BYTES
            parts = maps.split(max(1, at_once // (4 * maps[0].numel())))
            return torch.cat([_diffuse(part, self.weights, self.iterations, self.dilations) for part in parts])
        # Classes of a pixel are read and summed together, and lie together in what is returned, as decoders read them.
        some = [self._diffuse_rows(part) for part in maps.permute(1, 2, 0).split(CLASSES, dim=2)]
        rows = some[0] if len(some) == 1 else torch.cat(some, dim=1)
        return rows.T.unflatten(1, maps.shape[1:])

    @functools.cached_property
    def by_pixel(self) -> tuple[Tensor, Tensor]:
        """Where the neighbours of each pixel are, and their weights, each [H·W, 8·dilations]."""
        height, width = self.weights.shape[1:]
        return neighbours_of((height, width), self.dilations), self.weights.flatten(1).T.contiguous()

    def _diffuse_rows(self, maps: Tensor) -> Tensor:
        """Maps [H, W, C] to the rows [H·W, C] of the same refined."""
        places, weights = self.by_pixel
        rows = maps.flatten(0, 1).clone(memory_format=torch.contiguous_format)
        others = torch.empty_like(rows)
        for _ in range(self.iterations):
            rows, others = sum_rows(rows, places, weights, others), rows
        return rows


def pamr(image: Tensor, maps: Tensor, iterations: int = 10, dilations: Sequence[int] = (8, 16)) -> Tensor:
    """Refine maps [C, H, W], of probabilities or scores, by an image [3, H, W] in any scale: [C, H, W], float32.

    The eight neighbours at each of the `dilations`, in pixels, take part, but not the pixel itself; beyond the
    border the border's pixels are repeated. The result is linear in the maps and a weighted mean at every pixel,
    so that probabilities stay probabilities. Memory beyond the result is that of two maps for each neighbour.
    """
    return Diffusion(image, iterations, dilations)(maps)


def affinity(image: Tensor, dilations: Sequence[int]) -> Tensor:
    """Weights [8·dilations, H, W], summing to 1 at each pixel, of its neighbours in an image [3, H, W].

    softmax over neighbours of −|difference| / (0.1 σ), averaged over the colours; σ is the standard deviation of
    the colour over the pixel and its neighbours, the pixel counted once for each dilation.
    """
    neighbours, count = list(_neighbours(image, dilations)), 9 * len(dilations)
    total, squares, difference = torch.zeros_like(image), torch.zeros_like(image), torch.empty_like(image)
    for neighbour in neighbours:
        # Relative to the pixel itself, so that flat regions do not cancel badly.
        torch.sub(neighbour, image, out=difference)
        total += difference
        squares.addcmul_(difference, difference)
    variance = (squares - total.square() / count).clamp_(min=LEAST) / (count - 1)
    scale = -1 / len(image) / (CONTRAST * variance.sqrt_() + 1e-8)
    logits = image.new_empty(len(neighbours), *image.shape[1:])
    for neighbour, out in zip(neighbours, logits):
        torch.sub(neighbour, image, out=difference).abs_()
        torch.mul(difference[0], scale[0], out=out)
        for colour, weight in zip(difference[1:], scale[1:]):
            out.addcmul_(colour, weight)
    return torch.softmax(logits, dim=0, out=logits)


def neighbours_of(shape: tuple[int, int], dilations: Sequence[int]) -> Tensor:
    """Where the neighbours of each of H · W pixels are, in the order of `affinity`: [H·W, 8·dilations], integers."""
    y, x = (torch.tensor([d * pair[axis] for d in dilations for pair in NEIGHBOURS]) for axis in (0, 1))
    (height, width), dtype = shape, torch.int32 if shape[0] * shape[1] * len(y) < 1 << 31 else torch.int64
    rows, columns = (
        (torch.arange(side)[:, None] + offsets).clamp_(0, side - 1) for side, offsets in ((height, y), (width, x))
    )
    return ((rows * width).to(dtype)[:, None] + columns.to(dtype)).flatten(0, 1)


def _diffuse(maps: Tensor, weights: Tensor, iterations: int, dilations: Sequence[int]) -> Tensor:
    for _ in range(iterations):
        out = torch.zeros_like(maps)
        for weight, neighbour in zip(weights, _neighbours(maps, dilations)):
            out.addcmul_(weight, neighbour)
        maps = out
    return maps


def _neighbours(maps: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """Views of [C, H, W] moved by each dilation to each neighbour, the border repeated."""
    border, (height, width) = max(dilations), maps.shape[1:]
    padded = F.pad(maps[None], (border,) * 4, mode="replicate")[0]
    for dilation in dilations:
        for y, x in NEIGHBOURS:
            top, left = border + dilation * y, border + dilation * x
            yield padded[:, top : top + height, left : left + width]


register("PAMR", PAMR, "scores averaged along the image's edges", "Araslanov & Roth, CVPR 2020")
