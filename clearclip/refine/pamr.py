"""PAMR (Araslanov & Roth, CVPR 2020, arXiv 2005.08104): pixel-adaptive mask refinement.

Every pixel takes the average of pixels around it, weighed by how like its own their colours are, several times
over. Labels then follow the edges of the image.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip.backbones import Backbone
from clearclip.refine import Refinement, register
from clearclip.text import Queries
from clearclip.view import View
from clearclip.windows import LateMaps, Maps

CHUNK_BYTES = 4 << 20  # of maps at once, which a CPU's cache holds
DEVICE_CHUNK_BYTES = 64 << 20  # elsewhere, where every chunk is launched anew, 18 kernels an iteration
SCORE_BYTES = 1 << 30  # of all queries at full size; where they need more, no more than some are there at a time
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
        self.weights = affinity(image.float(), dilations)

    def __call__(self, maps: Tensor) -> Tensor:
        maps = maps.float()
        at_once = CHUNK_BYTES if maps.device.type == "cpu" else DEVICE_CHUNK_BYTES
        chunk = max(1, at_once // (4 * maps[0].numel()))
        return torch.cat([_diffuse(part, self.weights, self.iterations, self.dilations) for part in maps.split(chunk)])


def pamr(image: Tensor, maps: Tensor, iterations: int = 10, dilations: Sequence[int] = (8, 16)) -> Tensor:
    """Refine maps [C, H, W], of probabilities or scores, by an image [3, H, W] in any scale: [C, H, W], float32.

    The eight neighbours at each of the `dilations`, in pixels, take part, but not the pixel itself; beyond the
    border the border's pixels are repeated. The result is linear in the maps and a weighted mean at every pixel,
    so that probabilities stay probabilities. Memory beyond the result is that of one map for each neighbour.
    """
    return Diffusion(image, iterations, dilations)(maps)


def affinity(image: Tensor, dilations: Sequence[int]) -> Tensor:
    """Weights [8·dilations, H, W], summing to 1 at each pixel, of its neighbours in an image [3, H, W].

    softmax over neighbours of −|difference| / (0.1 σ), averaged over the colours; σ is the standard deviation of
    the colour over the pixel and its neighbours, the pixel counted once for each dilation.
    """
    count = 9 * len(dilations)
    total, squares = torch.zeros_like(image), torch.zeros_like(image)
    for neighbour in _neighbours(image, dilations):
        # Relative to the pixel itself, so that flat regions do not cancel badly.
        difference = neighbour - image
        total += difference
        squares += difference.square()
    variance = (squares - total.square() / count).clamp(min=0) / (count - 1)
    scale = -1 / (CONTRAST * variance.sqrt() + 1e-8)
    logits = [((neighbour - image).abs() * scale).mean(dim=0) for neighbour in _neighbours(image, dilations)]
    return torch.stack(logits).softmax(dim=0)


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
