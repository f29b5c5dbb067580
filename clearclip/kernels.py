"""Triton kernels for GPUs: stitching with arg-max, whose scores never exist at full size, and QuickGELU in one pass.

Their results are tested in Triton's interpreter, and what NVIDIA's compiler makes of them for sm_80 and sm_90 is looked
at for spilled registers. They have not been timed, or run, on a GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, PIXELS, QUERIES = 8, 16, 64  # of a program: output rows one after the other, pixels and queries at once
BLOCK = 2048  # numbers of a program that works on each by itself


@triton.jit
def _best_query(  # type: ignore[no-untyped-def]
    across, sources, weights, best_query, height, width, queries, taps,
    ROWS: tl.constexpr, PIXELS: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    x = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    # Neighbouring rows read nearly the same of `across`: in one program they find it in the nearest cache.
    top = tl.program_id(0) * ROWS
    for y in range(top, tl.minimum(top + ROWS, height)):
        best = tl.full([PIXELS], float("-inf"), tl.float32)
        index = tl.zeros([PIXELS], tl.int32)
        for first in range(0, queries, QUERIES):
            q = first + tl.arange(0, QUERIES)
            inside = (x[:, None] < width) & (q[None, :] < queries)
            scores = tl.zeros([PIXELS, QUERIES], tl.float32)
            for tap in range(0, taps):  # not unrolled: nine taps at once do not fit into the registers
                row = tl.load(sources + y * taps + tap)  # int64, as are the addresses made from it
                values = tl.load(across + (row * width + x[:, None]) * queries + q[None, :], mask=inside, other=0.0)
                scores += tl.load(weights + y * taps + tap) * values
            scores = tl.where(q[None, :] < queries, scores, float("-inf"))
            here = tl.max(scores, axis=1)
            better = here > best  # not where equal: the first of equals wins
            index = tl.where(better, first + tl.argmax(scores, axis=1, tie_break_left=True), index)
            best = tl.where(better, here, best)
        tl.store(best_query + y * width + x, index, mask=x < width)


def best_query(across: Tensor, sources: Tensor, weights: Tensor) -> Tensor:
    """The best query [H, W], int32, the first of equals, from scores [a, W, Q] at full width.

    Row y of the scores at full height is Σ weights[y, t] · across[sources[y, t]], both [H, taps].
    """
    (height, taps), (_, width, queries) = sources.shape, across.shape
    best = torch.empty(height, width, dtype=torch.int32, device=across.device)
    grid = (triton.cdiv(height, ROWS), triton.cdiv(width, PIXELS))
    _best_query[grid](
        across.contiguous(), sources, weights, best, height, width, queries, taps,
        ROWS=ROWS, PIXELS=PIXELS, QUERIES=QUERIES,
    )  # fmt: skip
    return best


@triton.jit
def _quick_gelu(numbers, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(numbers + place, mask=place < count).to(tl.float32)
    tl.store(numbers + place, x / (1 + tl.exp(-1.702 * x)), mask=place < count)


def quick_gelu_(hidden: Tensor) -> Tensor:
    """x · sigmoid(1.702 x) in place, computed in float32, of a contiguous tensor: read once and written once."""
    _quick_gelu[(triton.cdiv(hidden.numel(), BLOCK),)](hidden, hidden.numel(), BLOCK=BLOCK)
    return hidden
