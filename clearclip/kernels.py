"""Stitching and arg-max in one Triton kernel: the scores never exist at full size.

Its results are tested in Triton's interpreter, against the PyTorch path. It has not been timed, or run, on a GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from clearclip.windows import Maps

PIXELS, QUERIES = 16, 64  # that one program holds at once


@triton.jit
def _best_query(  # type: ignore[no-untyped-def]
    across, sources, weights, best_query, width, queries,
    TAPS: tl.constexpr, PIXELS: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    y = tl.program_id(0)
    x = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    best = tl.full([PIXELS], float("-inf"), tl.float32)
    index = tl.zeros([PIXELS], tl.int32)
    for first in range(0, queries, QUERIES):
        q = first + tl.arange(0, QUERIES)
        inside = (x[:, None] < width) & (q[None, :] < queries)
        scores = tl.zeros([PIXELS, QUERIES], tl.float32)
        for tap in tl.static_range(TAPS):
            row = tl.load(sources + y * TAPS + tap)  # int64, as are the addresses made from it
            values = tl.load(across + (row * width + x[:, None]) * queries + q[None, :], mask=inside, other=0.0)
            scores += tl.load(weights + y * TAPS + tap) * values
        scores = tl.where(q[None, :] < queries, scores, float("-inf"))
        here = tl.max(scores, axis=1)
        better = here > best  # not where equal: the first of equals wins
        index = tl.where(better, first + tl.argmax(scores, axis=1, tie_break_left=True), index)
        best = tl.where(better, here, best)
    tl.store(best_query + y * width + x, index, mask=x < width)


def best_query(scores: Tensor, maps: Maps) -> Tensor:
    """The best query [H, W], int32, the first of equals, from scores [a, b, Q] and the operators of maps."""
    rows, columns, taps = maps.rows, maps.columns, maps.taps or maps.rows.shape[1]
    sources = rows.abs().topk(taps, dim=1).indices  # [H, taps]
    across = (columns @ scores).contiguous()  # [a, W, Q]
    best = torch.empty(len(rows), len(columns), dtype=torch.int32, device=scores.device)
    grid = (len(rows), triton.cdiv(len(columns), PIXELS))
    _best_query[grid](
        across, sources, rows.gather(1, sources), best, len(columns), scores.shape[-1],
        TAPS=taps, PIXELS=PIXELS, QUERIES=QUERIES,
    )  # fmt: skip
    return best
