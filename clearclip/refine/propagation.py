"""Label propagation (LPOSS, CVPR 2025, arXiv 2503.19777): scores flow between what looks alike.

Patches of all windows of an image, or its pixels, are the nodes of a graph whose weights say how alike
two of them are and how near. With the weights W, made symmetric and divided by the square roots of both nodes' degrees,
scores Y become X, where (I − α W) X = Y: each node's own scores and, α times, those that its neighbours end up with.
The equations are solved by a few steps of conjugate gradients, as published; these are part of the method, for they
stop before the flow has crossed the image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip.products import sum_rows, sums_rows
from clearclip.view import View
from clearclip.windows import Axis, Plan

ALPHA = 0.95
NEIGHBOURS = 400  # of a patch, itself included
SHARPNESS = 3.0  # the power of a cosine
FALLOFF = 0.01  # of a weight, by pixel between centres of patches
STEPS, ACCURACY = 10, 1e-6  # of conjugate gradients: at most so many, until the residual is this share of the scores
WHITE = (0.95047, 1.0, 1.08883)  # D65
XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))  # of linear RGB
LAB_RANGE = (100.0, 128.0, 128.0)
SIMILARITY_BYTES = 32 << 20  # of patches' similarities at once
# A square of a distance that is nothing beside others: roots of 0 take PyTorch several times as long on a CPU, as do
# `exp` beside `exp2` and all that is infinite.
LEAST, UNLIKE = 1e-30, 1e18
PLACE_BYTES = 2 << 20  # of the places of pixels' neighbours at once: the second-level cache holds them


@dataclass(frozen=True)
class Propagation:
    """Between the patches of all windows of an image.

    Attributes:
        neighbours: how many a patch has, itself included.
        alpha: α, below 1: how far scores flow.
    """

    neighbours: int = NEIGHBOURS
    alpha: float = ALPHA

    def __post_init__(self) -> None:
        if self.neighbours < 2:
            raise ValueError(f"neighbours must be 2 or more, the first being the patch itself, not {self.neighbours}")
        check_alpha(self.alpha)

    def __call__(self, view: View, scores: Tensor, features: Tensor) -> Tensor:
        """Scores [n, Q, h, w] of the patches of all windows to the same, by their features [n, D', h, w]."""
        flat = features.flatten(2).transpose(1, 2).flatten(0, 1)  # [n·h·w, D']
        grid = (features.shape[2], features.shape[3])
        centres = view.backbone.constants.get(
            ("centres", view.plan, grid), lambda: patch_centres(view.plan, grid).to(flat.device)
        )
        graph = PatchGraph.of(flat, centres, self.neighbours)
        spread = propagate(graph, scores.transpose(0, 1).flatten(1), self.alpha)  # [Q, n·h·w]
        return spread.unflatten(1, (-1, *grid)).transpose(0, 1)


def check_alpha(alpha: float) -> None:
    """Raise ValueError where scores cannot flow by α."""
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must be 0 or more and below 1, not {alpha}")


def propagate(graph: Callable[[Tensor], Tensor], scores: Tensor, alpha: float) -> Tensor:
    """Scores [Q, …] to (1 − α) (I − α W)⁻¹ scores: of their own size, whatever α is."""
    return (1 - alpha) * solve(graph, scores.float(), alpha)


def solve(graph: Callable[[Tensor], Tensor], y: Tensor, alpha: float) -> Tensor:
    """X of X − α W X = Y for maps Y [Q, …] by conjugate gradients from 0; `graph` takes maps X to others, W X,
    which are written over.

    Each map has its own steps, and keeps what it has where it is accurate enough: nothing waits to find that out.
    """
    nodes, products = tuple(range(1, y.ndim)), torch.empty_like(y)

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return torch.mul(a, b, out=products).sum(dim=nodes, keepdim=True)

    x, residual, direction = torch.zeros_like(y), y.clone(), y.clone()
    square = dot(y, y)
    accurate = ACCURACY**2 * square
    for _ in range(STEPS):
        going = square > accurate
        turned = graph(direction)
        torch.sub(direction, turned, alpha=alpha, out=turned)
        step = torch.where(going, square / dot(direction, turned), 0)
        x.addcmul_(step, direction)
        residual.addcmul_(step, turned, value=-1)
        before, square = square, dot(residual, residual)
        torch.addcmul(residual, torch.where(going, square / before, 0), direction, out=direction)
    return x


@dataclass(frozen=True)
class PatchGraph:
    """W as a list of its edges, sorted by where they end; called with maps X [Q, N] it gives W X."""

    sources: Tensor  # [E]
    first: Tensor  # [N], the first edge that ends at each node
    weights: Tensor  # [E]

    @classmethod
    def of(cls, features: Tensor, centres: Tensor, neighbours: int) -> "PatchGraph":
        """Of N patches with features [N, D'] and centres [N, 2] in pixels: each and its nearest by cosine.

        The weight of an edge is max(0, cosine)³ · exp(−0.01 · distance), added up where both are a neighbour of the
        other. Memory is that of the edges, `neighbours` for each patch and direction.
        """
        unit = F.normalize(features.float(), dim=1)
        count, device = len(unit), unit.device
        rows = max(1, SIMILARITY_BYTES // (4 * count))
        near = [(part @ unit.T).topk(min(neighbours, count)) for part in unit.split(rows)]
        cosine, index = (torch.cat(parts) for parts in zip(*near))  # [N, k]
        distance = torch.linalg.vector_norm(centres[:, None] - centres[index], dim=2)
        weights = cosine.clamp(min=0) ** SHARPNESS * torch.exp(-FALLOFF * distance)
        itself = torch.arange(count, device=device)[:, None]
        weights = weights.masked_fill(index == itself, 0).flatten()
        ends = torch.cat([itself.expand_as(index).flatten(), index.flatten()])
        sources = torch.cat([index.flatten(), itself.expand_as(index).flatten()])
        ends, order = ends.sort(stable=True)
        first = torch.searchsorted(ends, itself[:, 0])
        graph = cls(sources[order], first, weights.repeat(2)[order])
        root = inverse_root(graph(torch.ones(1, count, device=device))[0])
        return cls(graph.sources, first, graph.weights * root[graph.sources] * root[ends])

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.T.contiguous()
        return F.embedding_bag(self.sources, rows, self.first, mode="sum", per_sample_weights=self.weights).T


class PixelGraph:
    """W of an image's pixels; called with maps X [Q, h, w] it gives W X.

    The weight of an edge is exp(−‖difference in Lab‖ / τ), its coordinates divided by (100, 128, 128). Neighbours lie
    up to `reach` pixels away in rows and columns.
    """

    def __init__(self, image: Tensor, reach: int, tau: float):
        """Of an RGB image [3, h, w] in 0..1."""
        self.colours = torch.stack([part / extent for part, extent in zip(lab(image), LAB_RANGE)])
        self.reach, self.tau = reach, tau

    @classmethod
    def of(cls, image: Tensor, reach: int, tau: float) -> "PixelGraph":
        """The graph as the device of an image [3, h, w] takes it."""
        return (RowGraph if sums_rows(image) else PairGraph)(image, reach, tau)

    def __call__(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class RowGraph(PixelGraph):
    """The same for a CPU: a weight for each pixel and neighbour, so that each sum is read and written once."""

    def __init__(self, image: Tensor, reach: int, tau: float):
        super().__init__(image, reach, tau)
        side, (height, width) = 2 * reach + 1, image.shape[1:]
        self.margin = reach * width + reach  # pixels before the first and after the last
        self.band = max(1, PLACE_BYTES // (4 * side**2 * width))  # rows of the image at once
        y, x = (torch.arange(side, dtype=torch.int32).view(shape) for shape in ((-1, 1), (1, -1)))
        here = torch.arange(min(self.band, height) * width, dtype=torch.int32)
        self.places = here[:, None] + (y * width + x).flatten()  # [band · w, side²], from a band's first neighbour on
        self.weights = image.new_empty(height, width, side**2)
        degree = image.new_empty(height, width)
        # Beyond the border lies what is so unlike that no weight leads there.
        padded = F.pad(self.colours, (reach,) * 4, value=UNLIKE)
        plane, row = padded.stride()[:2]
        buffers = image.new_empty(2, side**2 * self.band * width)
        for first in range(0, height, self.band):
            band = slice(first, first + self.band)
            own = self.colours[:, band]  # [3, r, w]
            around = padded.as_strided((3, side, side, *own.shape[1:]), (plane, row, 1, row, 1), first * row)
            weights, difference = (part[: around[0].numel()].view(around[0].shape) for part in buffers)
            weights.fill_(LEAST)
            for theirs, mine in zip(around, own):
                torch.sub(theirs, mine, out=difference)
                weights.addcmul_(difference, difference)
            weights.sqrt_().mul_(-1 / (tau * math.log(2))).exp2_()
            weights[reach, reach] = 0  # the pixel itself
            flat = weights.flatten(0, 1)
            degree[band] = flat.sum(dim=0)
            self.weights[band] = flat.permute(1, 2, 0)
        self.root = inverse_root(degree)[:, :, None]  # [h, w, 1]
        self.buffers: tuple[Tensor, Tensor] | None = None  # X and what surrounds it, W X

    def __call__(self, x: Tensor) -> Tensor:
        """W X for maps X [Q, h, w], the maps of a pixel side by side, in memory that the next call writes over."""
        rows = x.permute(1, 2, 0)  # [h, w, Q]
        if self.buffers is None or self.buffers[1].shape != rows.shape:
            around = x.new_zeros(self.root.numel() + 2 * self.margin, len(x))
            self.buffers = around, rows.new_empty(rows.shape)
        padded, out = self.buffers
        torch.mul(rows, self.root, out=padded[self.margin : -self.margin].view(rows.shape))
        for first in range(0, len(rows), self.band):
            weights = self.weights[first : first + self.band].flatten(0, 1)
            sums = sum_rows(padded[first * rows.shape[1] :], self.places[: len(weights)], weights)
            band = slice(first, first + self.band)
            torch.mul(sums.view(-1, *rows.shape[1:]), self.root[band], out=out[band])
        return out.permute(2, 0, 1)


class PairGraph(PixelGraph):
    """The same for other devices: a weight for each two pixels, a map of them for each offset between two."""

    def __init__(self, image: Tensor, reach: int, tau: float):
        super().__init__(image, reach, tau)
        height, width = image.shape[1:]
        down, across = range(min(reach, height - 1) + 1), range(-min(reach, width - 1), min(reach, width - 1) + 1)
        self.offsets = [(y, x) for y in down for x in across if (y, x) > (0, 0)]  # to one of each two opposite ones
        self.weights, degree = [], torch.zeros_like(self.colours[0])
        for offset in self.offsets:
            one, other = pairs(self.colours, offset)
            self.weights.append((one - other).square_().sum(dim=0).sqrt_().div_(-tau).exp_())
            for end in pairs(degree, offset):
                end += self.weights[-1]
        root = inverse_root(degree)
        for weight, offset in zip(self.weights, self.offsets):
            one, other = pairs(root, offset)
            weight *= one
            weight *= other

    def __call__(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for weight, offset in zip(self.weights, self.offsets):
            (one, other), (to_one, to_other) = pairs(x, offset), pairs(out, offset)
            to_one.addcmul_(weight, other)
            to_other.addcmul_(weight, one)
        return out


def pairs(maps: Tensor, offset: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Views of maps [..., h, w]: all pixels that have a neighbour at an offset (y ≥ 0, x), and these neighbours."""
    (y, x), (height, width) = offset, maps.shape[-2:]
    left, right = max(0, -x), width - max(0, x)
    return maps[..., : height - y, left:right], maps[..., y:, left + x : right + x]


def inverse_root(degree: Tensor) -> Tensor:
    """1 / √degree; a node that no edge ends at has a degree of 1."""
    return torch.where(degree > 0, degree, 1).rsqrt()


def lab(image: Tensor) -> Tensor:
    """CIE L*a*b* [3, h, w] (L in 0..100) of an sRGB image [3, h, w] in 0..1, for the white D65."""
    linear = torch.where(image > 0.04045, ((image + 0.055) / 1.055) ** 2.4, image / 12.92)
    red, green, blue = linear
    xyz = torch.stack([(r * red + g * green + b * blue) / white for (r, g, b), white in zip(XYZ, WHITE)])
    f = torch.where(xyz > 0.008856, xyz ** (1 / 3), 7.787 * xyz + 4 / 29)
    x, y, z = f
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def patch_centres(plan: Plan, grid: tuple[int, int]) -> Tensor:
    """Centres [n·h·w, 2] of the patches of all windows, row and column in pixels of the image; grid is (h, w)."""
    y, x = (
        axis_centres(axis, patches) for axis, patches in zip((plan.rows, plan.columns), grid)
    )  # [rows, h], [columns, w]
    shape = (len(y), len(x), *grid)
    return torch.stack([y[:, None, :, None].expand(shape), x[None, :, None, :].expand(shape)], dim=-1).reshape(-1, 2)


def axis_centres(axis: Axis, patches: int) -> Tensor:
    """Centres [windows, patches] along one axis, in pixels; the patches of a whole image are stretched over it all."""
    starts = torch.tensor(axis.starts, dtype=torch.float32)[:, None]
    size, before = (axis.length, 0) if axis.whole else (axis.padded, axis.before)
    return starts - before + (torch.arange(patches) + 0.5) * size / patches
