"""Where windows lie, and the linear operators that stitch and resize their scores.

Upsampling a window's scores to pixels, summing windows, dividing by the overlap count and resizing to the
original image are all linear, and each is a product of a row and a column operation. So a whole image is
`rows @ scores @ columns.T` for every query, with two small matrices that depend on the geometry alone.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from clearclip.tensors import TensorCache


@dataclass(frozen=True)
class Axis:
    """Windows along one axis of an image, in pixels: where each starts, how long all are, padding to patches."""

    length: int
    starts: tuple[int, ...]
    size: int
    before: int  # padding before the window
    padded: int  # size of the window with its padding, a multiple of the patch where the network takes all of it
    whole: bool = False  # one window for the image, its scores resized to the output in one step


def plan_axis(length: int, crop: int, stride: int, patch: int, two_steps: bool = False) -> Axis:
    """Lay windows of `crop` pixels every `stride` along `length`; the last is shifted back to end inside.

    A window that is no patch multiple is padded on both sides. `crop` 0 means the whole image as published
    pipelines take it: unpadded, the pixels beyond the last full patch dropped, its grid stretched to the output. With
    `two_steps` the network leaves these pixels out, not the window, and its grid is first stretched to the window.
    """
    if not crop and two_steps:
        padded = max(length, patch)
        return Axis(length, (0,), length, (padded - length) // 2, padded)
    if not crop:
        size = max(length // patch * patch, min(length, patch))
        starts: tuple[int, ...] = (0,)
    else:
        size = min(crop, length)
        count = max(length - size + stride - 1, 0) // stride + 1
        starts = tuple(min(i * stride, length - size) for i in range(count))
    padding = -size % patch
    return Axis(length, starts, size, padding // 2, size + padding, whole=not crop)


def whole_axis(length: int) -> Axis:
    """One window for all of an axis."""
    return Axis(length, (0,), length, 0, length, whole=True)


@dataclass(frozen=True)
class Plan:
    """The windows of one image: every row of `rows` with every column of `columns`, row by row.

    `crop` and `stride` are those that were asked for; a small image has smaller windows.
    """

    rows: Axis
    columns: Axis
    crop: int = 0
    stride: int = 0

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    @property
    def window_shape(self) -> tuple[int, int]:
        """Height and width of a window with its padding, in pixels."""
        return self.rows.padded, self.columns.padded


def plan(height: int, width: int, crop: int, stride: int, patch: int, two_steps: bool = False) -> Plan:
    """Windows of an image of height × width pixels. `crop` 0 is the whole image, see `plan_axis`."""
    rows, columns = (plan_axis(length, crop, stride, patch, two_steps) for length in (height, width))
    return Plan(rows, columns, crop, stride)


def covering_shape(height: int, width: int, multiple: int, least: int) -> tuple[int, int]:
    """The size (H, W) that an image is stretched to where both sides must be multiples of a number of pixels.

    The longer side grows to the next multiple, the other in proportion and then to its next multiple, so that the
    proportions change a little; neither is less than `least`. A size that fits already is kept (Trident, RADSeg).
    """
    if height % multiple == 0 and width % multiple == 0:
        return height, width
    longer = max(height, width)
    target = -(-longer // multiple) * multiple
    rows, columns = (max(-(-(side * target // longer) // multiple) * multiple, least) for side in (height, width))
    return rows, columns


def average(features: Tensor, plan: Plan, patch: int, ratio: int = 1) -> Tensor:
    """Features of all windows [n·m, h, w, C] to those of the image [h', w', C], averaged where they overlap, float32.

    A patch has ratio × ratio positions. Windows start at multiples of the patch, in pixels, so that positions of
    several coincide and nothing is interpolated.
    """
    height, width = features.shape[1:3]
    tops, lefts = ([start // patch * ratio for start in axis.starts] for axis in (plan.rows, plan.columns))
    total = features.new_zeros(tops[-1] + height, lefts[-1] + width, features.shape[-1], dtype=torch.float32)
    count = torch.zeros_like(total[..., :1])
    for (top, left), window in zip(itertools.product(tops, lefts), features):
        place = slice(top, top + height), slice(left, left + width)
        total[place] += window
        count[place] += 1
    return total / count


def cut(image: Tensor, plan: Plan) -> Tensor:
    """Cut an image [3, H, W] into its padded windows [n, 3, height, width]; padding is 0, the mean colour."""
    rows, columns = plan.rows, plan.columns
    padding = (
        columns.before, columns.padded - columns.size - columns.before,
        rows.before, rows.padded - rows.size - rows.before,
    )  # fmt: skip
    windows = [image[:, y : y + rows.size, x : x + columns.size] for y in rows.starts for x in columns.starts]
    return F.pad(torch.stack(windows), padding) if any(padding) else torch.stack(windows)


def resize_matrix(source: int, target: int) -> Tensor:
    """The matrix [target, source] of a bilinear resize of one axis, as torch computes it."""
    identity = torch.eye(source).unsqueeze(0)  # [1, channels = source, source]
    return F.interpolate(identity, size=target, mode="linear", align_corners=False)[0].T


def stitch_operator(axis: Axis, patches: int, target: int) -> Tensor:
    """The matrix [target, windows × patches] that takes all windows' scores along one axis to `target` pixels.

    `patches` is the number of score positions of a window along this axis.
    """
    if axis.whole:
        return resize_matrix(patches, target)
    upsample = resize_matrix(patches, axis.padded)[axis.before : axis.before + axis.size]  # [size, patches]
    stitched = torch.zeros(axis.length, len(axis.starts), patches)
    for index, start in enumerate(axis.starts):
        stitched[start : start + axis.size, index] = upsample
    # Each window's weights sum to 1 per pixel, so the sum over windows counts the overlap.
    count = stitched.sum(dim=(1, 2)).round()
    stitched = (stitched / count[:, None, None]).flatten(1)  # [length, windows · patches]
    return stitched if target == axis.length else resize_matrix(axis.length, target) @ stitched


def taps(axis: Axis, patches: int) -> int:
    """At most so many entries of a row of `stitch_operator` are not 0: of each window that covers a pixel or the next.

    Two neighbouring pixels lie between three patches at most.
    """
    if axis.whole:
        return min(2, patches)
    busiest = max(sum(start <= first < start + axis.size + 1 for start in axis.starts) for first in axis.starts)
    return min(3 * busiest, patches * len(axis.starts))


def tile(scores: Tensor, plan: Plan) -> Tensor:
    """Window scores [n·m, Q, h, w] to the layout the operators act on: [Q, n·h, m·w]."""
    n, m = len(plan.rows.starts), len(plan.columns.starts)
    _, queries, h, w = scores.shape
    return scores.reshape(n, m, queries, h, w).permute(2, 0, 3, 1, 4).reshape(queries, n * h, m * w)


@dataclass(frozen=True)
class Taps:
    """The entries of an operator [H, a] that are not 0, and others that are, up to t in each row."""

    sources: Tensor  # [H, t], int64, of 0 … a − 1
    weights: Tensor  # [H, t]

    @classmethod
    def of(cls, operator: Tensor, taps: int) -> "Taps":
        """Of an operator no row of which has more than `taps` entries that are not 0."""
        sources = operator.abs().topk(taps, dim=1).indices.sort(dim=1).values
        return cls(sources, operator.gather(1, sources))


@dataclass(frozen=True)
class Maps:
    """Scores of a whole image [Q, H, W], as the product `rows` · `scores` · `columns`ᵀ that is their upsampling."""

    scores: Tensor  # [Q, a, b]
    rows: Tensor  # [H, a]
    columns: Tensor  # [W, b]
    taps: Taps | None = None  # `rows` once more, for a GPU's fused kernel
    whole: bool = False  # whether `scores` have full size, and the operators change nothing

    @classmethod
    def of(cls, scores: Tensor) -> "Maps":
        """Of scores [Q, H, W] that have their full size."""
        rows, columns = (torch.eye(side, device=scores.device) for side in scores.shape[1:])
        return cls(scores, rows, columns, whole=True)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.rows.shape[0], self.columns.shape[0]

    def full(self) -> Tensor:
        """Scores [Q, H, W], float32: all of them in memory at once."""
        return self.rows @ self.scores.float() @ self.columns.T

    def every(self, step: int) -> Tensor:
        """Scores [Q, h, w] of every `step`-th pixel both ways, from `step // 2` on, as `full` has them."""
        rows, columns = self.rows[step // 2 :: step], self.columns[step // 2 :: step]
        return rows @ self.scores.float() @ columns.T


class LateMaps(Maps):
    """Maps that are made some queries at a time, for all of them at full size would fill the memory.

    They are `change` of those of `maps`, [n, H, W] to the same, which looks at each query alone. Whoever takes them for
    plain `Maps` has all of them made.
    """

    maps: Maps
    change: Callable[[Tensor], Tensor]

    def __init__(self, maps: Maps, change: Callable[[Tensor], Tensor]):
        for name, value in (("maps", maps), ("change", change), ("taps", None), ("whole", True)):
            object.__setattr__(self, name, value)  # `Maps` are frozen

    def part(self, queries: Sequence[int]) -> Tensor:
        """The maps [n, H, W] of some queries, float32."""
        chosen = torch.stack([self.maps.scores[query] for query in queries])  # an index would have to be uploaded
        return self.change(replace(self.maps, scores=chosen).full())

    @property
    def shape(self) -> tuple[int, int]:
        return self.maps.shape

    @functools.cached_property
    def scores(self) -> Tensor:
        return self.part(range(len(self.maps.scores)))

    @functools.cached_property
    def rows(self) -> Tensor:
        return torch.eye(self.shape[0], device=self.maps.scores.device)

    @functools.cached_property
    def columns(self) -> Tensor:
        return torch.eye(self.shape[1], device=self.maps.scores.device)

    def full(self) -> Tensor:
        return self.scores


class Stitcher:
    """Brings scores of windows, or of whole images, to any size by operators made once for a geometry.

    `max_bytes` bounds what is kept of them.
    """

    def __init__(self, device: torch.device, max_bytes: int = 256 << 20):
        self.device = device
        self._operators = TensorCache(max_bytes)

    def maps(self, scores: Tensor, plan: Plan, shape: tuple[int, int]) -> Maps:
        """Window scores [n·m, Q, h, w] of an image to its maps at `shape` (H, W)."""
        h, w = scores.shape[2:]
        rows, columns = self._operator(plan.rows, h, shape[0]), self._operator(plan.columns, w, shape[1])
        return Maps(tile(scores, plan), rows, columns, self._taps(plan.rows, h, shape[0]))

    def resized(self, scores: Tensor, shape: tuple[int, int]) -> Maps:
        """Scores [Q, h, w] of a whole image to its maps at `shape` (H, W), bilinear."""
        h, w = scores.shape[1:]
        rows, columns = (self._operator(whole_axis(n), n, side) for n, side in ((h, shape[0]), (w, shape[1])))
        return Maps(scores, rows, columns, self._taps(whole_axis(h), h, shape[0]))

    def _operator(self, axis: Axis, patches: int, target: int) -> Tensor:
        key = (axis, patches, target)
        return self._operators.get(key, lambda: stitch_operator(*key).to(self.device))

    def _taps(self, axis: Axis, patches: int, target: int) -> Taps | None:
        if self.device.type != "cuda":
            return None

        def make(part: str) -> Tensor:  # on the CPU: which entries are 0 is nothing to ask a GPU
            found: Tensor = getattr(Taps.of(stitch_operator(axis, patches, target), taps(axis, patches)), part)
            return found.to(self.device)

        return Taps(
            *(
                self._operators.get((part, axis, patches, target), functools.partial(make, part))
                for part in ("sources", "weights")
            )
        )
