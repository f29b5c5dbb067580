"""Linear layers and attention as fast as a CPU goes; elsewhere, and under autograd or a tracer, PyTorch's own.

PyTorch hands a product in float32 to MKL, which does not use all that some processors have, and in any precision lays
the weight out anew each time. Here oneDNN lays it out once, by the operators that `torch.compile` uses for the same.
Attention is two such products for a softmax: PyTorch's kernel cuts it into tiles too small for these processors.

How a product is computed depends on the machine and the number of threads, never on a clock: digits repeat. What a
clock does decide, once, is whether bfloat16 pays (`bfloat16_pays`), and results say in which precision they were made.
"""

import functools
import itertools
import math
import platform
import time
from collections.abc import Callable, MutableMapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils.weak import WeakIdKeyDictionary

FEW_THREADS = 4  # up to so many, the products of one window's attention keep all of them busy
HEAD_ROWS = 400  # of a head's scores at once in float32: the second-level cache holds them
CLEARLY, TURNS = 3.0, 12  # so many times as fast, in the best of so many turns
SCORE_BYTES = 16 << 20  # of all heads' scores at once in bfloat16
SUM_BYTES = 2 << 20  # of sums at once: more may be memory that is had from the system each time, page by page

# By weight, and by which of its rows: the weight's version, and what oneDNN made of it. It goes when the weight goes.
_packed: MutableMapping[Tensor, dict[tuple[int, int], tuple[int, Tensor]]] = WeakIdKeyDictionary()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, rows: slice | None = None) -> Tensor:
    """x [..., D] to x Wᵀ + b [..., E], for a weight [E, D] and a bias [E]; or only the `rows` of these, [..., R].

    keys = linear(x, attn.in_proj_weight, attn.in_proj_bias, slice(width, 2 * width))
    """
    chosen = slice(0, len(weight)) if rows is None else rows
    part = None if bias is None else bias[chosen]
    if not _takes(x, weight):
        return F.linear(x, weight[chosen], part)
    version = 0 if weight.is_inference() else weight._version
    made, key = _packed.setdefault(weight, {}), (chosen.start, chosen.stop)
    if key not in made or made[key][0] != version:
        count = x.numel() // x.shape[-1]
        made[key] = version, torch.ops.mkldnn._reorder_linear_weight(weight[chosen].detach().contiguous(), count)
    return _product(x, made[key][1], part)


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def quicken(network: nn.Module) -> nn.Module:
    """A network whose linear layers have become `Linear`s, in place."""
    for module in network.modules():
        if type(module) in (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear):
            module.__class__ = Linear
    return network


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    scale: float | None = None,
    total: Tensor | None = None,
) -> Tensor:
    """softmax(scale · q kᵀ + bias) v, [B, heads, T, e], for q and k [B, heads, T, d] and v [B, heads, T, e].

    `scale` is 1 / √d unless given; `bias` broadcasts to [B, heads, T, T]. The softmax is added to `total`, float32 of
    that shape, where it is given.
    """
    taken = _takes(q, k) and _takes(q, v)
    if total is not None and not (taken and q.dtype == torch.float32):
        scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        weights = (scores if bias is None else scores + bias).float().softmax(dim=-1)
        total += weights
        return weights.to(v) @ v
    if not taken or (total is None and torch.get_num_threads() > FEW_THREADS):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    batch, heads, count, width = v.shape
    q = (q * (q.shape[-1] ** -0.5 if scale is None else scale)).contiguous()
    k, v = k.contiguous(), v.mT.contiguous()
    bias = None if bias is None else bias.to(q).broadcast_to(batch, heads, count, count)
    out = q.new_empty(batch, count, heads, width).transpose(1, 2)  # heads side by side, as a projection reads them
    single = q.dtype == torch.float32
    groups: Sequence[int | slice] = range(heads) if single else [slice(None)]
    rows = HEAD_ROWS if single else max(1, SCORE_BYTES // (2 * heads * count))
    times: Callable[[Tensor, Tensor], Tensor] = _product if single else _products
    for image, group in itertools.product(range(batch), groups):
        for start in range(0, count, rows):
            some = (image, group, ..., slice(start, start + rows), slice(None))
            scores = times(q[some], k[image, group])
            if bias is not None:
                scores += bias[some]
            torch.softmax(scores, dim=-1, out=scores)
            if total is not None:
                total[some] += scores
            out[some] = times(scores, v[image, group])
    return out


def sums_rows(like: Tensor) -> bool:
    """Whether `sum_rows` is the way to add up neighbours of maps on the device of a tensor.

    It is on a CPU, which then reads and writes each sum once. Elsewhere shifted maps are added, which any device can,
    and any exporter.
    """
    return like.device.type == "cpu" and not torch.compiler.is_compiling()


def sum_rows(rows: Tensor, places: Tensor, weights: Tensor, out: Tensor | None = None) -> Tensor:
    """Weighted sums [M, C] of rows [N, C]: Σₖ weights[m, k] · rows[places[m, k]], for places and weights [M, K].

    They are written into `out`, where it is given.
    """
    step = max(1, SUM_BYTES // (rows.element_size() * rows.shape[1]))
    if out is None and len(places) <= step:
        return F.embedding_bag(places, rows, mode="sum", per_sample_weights=weights)
    out = rows.new_empty(len(places), rows.shape[1]) if out is None else out
    for first in range(0, len(places), step):
        some = slice(first, first + step)
        out[some] = F.embedding_bag(places[some], rows, mode="sum", per_sample_weights=weights[some])
    return out


def product(x: Tensor, y: Tensor) -> Tensor:
    """x yᵀ [..., T, E] for x [..., T, D] and y [..., E, D]."""
    return _product(x, y) if y.ndim == 2 and _takes(x, y) else x @ y.mT


@functools.lru_cache(maxsize=1)
def bfloat16_pays() -> bool:
    """Whether this CPU multiplies bfloat16 much faster than float32: found by a small product of each, once a process.

    A processor with matrix units for it is up to 16 times as fast, one with vector instructions twice, which does not
    pay for the labels that it moves. The best of several turns of one thread counts, in its own seconds: what else the
    machine does leaves them alone.
    """
    if not (_knows(torch.float32) and _knows(torch.bfloat16)):
        return False
    products: dict[torch.dtype, Callable[[], Tensor]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.ones(256, 768, dtype=dtype), torch.ones(768, 768, dtype=dtype)
        products[dtype] = functools.partial(linear, x, weight)
    clock = time.thread_time if time.get_clock_info("thread_time").resolution < 1e-5 else time.perf_counter
    seconds, threads = {dtype: math.inf for dtype in products}, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _, (dtype, product) in itertools.product(range(TURNS), products.items()):
            start = clock()
            product()
            seconds[dtype] = min(seconds[dtype], clock() - start)
    finally:
        torch.set_num_threads(threads)
    return seconds[torch.float32] > CLEARLY * seconds[torch.bfloat16]


def _product(x: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor:
    """x yᵀ + bias, [..., E], for x [..., D] and y [E, D], laid out or not."""
    return torch.ops.mkldnn._linear_pointwise(x, y, bias, "none", [], "")


def _products(x: Tensor, y: Tensor) -> Tensor:
    """x yᵀ, [n, T, E], for x [n, T, D] and y [n, E, D]."""
    return torch.bmm(x, y.mT)


def _takes(x: Tensor, y: Tensor) -> bool:
    """Whether oneDNN may take a product over: of plain tensors on a CPU that it knows, for inference."""
    return (
        not torch.compiler.is_compiling()
        and x.device.type == y.device.type == "cpu"
        and x.dtype == y.dtype
        and type(x) is Tensor
        and type(y) in (Tensor, nn.Parameter)
        and x.numel() > 0
        and not is_in_torch_dispatch_mode()  # who counts operations counts PyTorch's
        and not (torch.is_grad_enabled() and (x.requires_grad or y.requires_grad))
        and _knows(x.dtype)
    )


@functools.lru_cache(maxsize=8)
def _knows(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has oneDNN's operators for a type on this processor, and they give the right product."""
    if dtype not in (torch.float32, torch.bfloat16) or platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        x, weight = (torch.linspace(-1, 1, size * 32, dtype=dtype).view(size, 32) for size in (3, 48))
        made = _product(x, torch.ops.mkldnn._reorder_linear_weight(weight, 3))
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
    return torch.allclose(made.float(), x.float() @ weight.float().T, atol=0.1)


__all__ = ["Linear", "attend", "bfloat16_pays", "linear", "product", "quicken", "sum_rows", "sums_rows"]
