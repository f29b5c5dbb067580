"""Where windows lie, and the linear operators that stitch and resize their scores.

Upsampling a window's scores to pixels, summing windows, dividing by the overlap count and resizing to the
original image are all linear, and each is a product of a row and a column operation. So a whole image is
`rows @ scores @ columns.T` for every query, with two small matrices that depend on the geometry alone.
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """Windows along one axis of an image, in pixels: where each starts, how long all are, padding to patches."""

    length: int
    starts: tuple[int, ...]
    size: int
    before: int  # padding before the window
    padded: int  # size of the window with its padding, a multiple of the patch
    whole: bool = False  # one window for the image, its scores resized to the output in one step


def plan_axis(length: int, crop: int, stride: int, patch: int) -> Axis:
    """Lay windows of `crop` pixels every `stride` along `length`; the last is shifted back to end inside.

    A window that is no patch multiple is padded on both sides. `crop` 0 means the whole image as published
    pipelines take it: unpadded, the pixels beyond the last full patch dropped, its grid stretched to the output.
    """
    if not crop:
        size = max(length // patch * patch, min(length, patch))
        starts = (0,)
    else:
        size = min(crop, length)
        count = max(length - size + stride - 1, 0) // stride + 1
        starts = tuple(min(i * stride, length - size) for i in range(count))
    padding = -size % patch
    return Axis(length, starts, size, padding // 2, size + padding, whole=not crop)


@dataclass(frozen=True)
class Plan:
    """The windows of one image: every row of `rows` with every column of `columns`, row by row."""

    rows: Axis
    columns: Axis

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    @property
    def window_shape(self) -> tuple[int, int]:
        """Height and width of a window with its padding, in pixels."""
        return self.rows.padded, self.columns.padded


def plan(height: int, width: int, crop: int, stride: int, patch: int) -> Plan:
    """Windows of an image of height × width pixels. `crop` 0 is the whole image."""
    return Plan(plan_axis(height, crop, stride, patch), plan_axis(width, crop, stride, patch))


def cut(image: Tensor, plan: Plan) -> Tensor:
    """Cut an image [3, H, W] into its padded windows [n, 3, height, width]; padding is 0, the mean colour."""
    rows, columns = plan.rows, plan.columns
    padding = (
        columns.before, columns.padded - columns.size - columns.before,
        rows.before, rows.padded - rows.size - rows.before,
    )  # fmt: skip
    windows = [image[:, y : y + rows.size, x : x + columns.size] for y in rows.starts for x in columns.starts]
    return F.pad(torch.stack(windows), padding) if any(padding) else torch.stack(windows)


def _resize_matrix(source: int, target: int) -> Tensor:
    """The matrix [target, source] of a bilinear resize of one axis, as torch computes it."""
    identity = torch.eye(source).unsqueeze(0)  # [1, channels = source, source]
    return F.interpolate(identity, size=target, mode="linear", align_corners=False)[0].T


@functools.lru_cache(maxsize=256)
def stitch_operator(axis: Axis, patches: int, target: int) -> Tensor:
    """The matrix [target, windows × patches] that takes all windows' scores along one axis to `target` pixels.

    `patches` is the number of score positions of a window along this axis.
    """
    if axis.whole:
        return _resize_matrix(patches, target)
    upsample = _resize_matrix(patches, axis.padded)[axis.before : axis.before + axis.size]  # [size, patches]
    stitched = torch.zeros(axis.length, len(axis.starts), patches)
    for index, start in enumerate(axis.starts):
        stitched[start : start + axis.size, index] = upsample
    # Each window's weights sum to 1 per pixel, so the sum over windows counts the overlap.
    count = stitched.sum(dim=(1, 2)).round()
    stitched = (stitched / count[:, None, None]).flatten(1)  # [length, windows · patches]
    return stitched if target == axis.length else _resize_matrix(axis.length, target) @ stitched


def stitch_operators(
    plan: Plan, grid: tuple[int, int], shape: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Row operator [H, n·h] and column operator [W, m·w] to an output `shape` (H, W), for windows of `grid` scores."""
    rows = stitch_operator(plan.rows, grid[0], shape[0])
    columns = stitch_operator(plan.columns, grid[1], shape[1])
    return rows.to(device), columns.to(device)


def tile(scores: Tensor, plan: Plan) -> Tensor:
    """Window scores [n·m, Q, h, w] to the layout the operators act on: [Q, n·h, m·w]."""
    n, m = len(plan.rows.starts), len(plan.columns.starts)
    _, queries, h, w = scores.shape
    return scores.reshape(n, m, queries, h, w).permute(2, 0, 3, 1, 4).reshape(queries, n * h, m * w)
