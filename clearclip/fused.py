"""The Triton kernels of `clearclip.kernels`, for GPUs on which they have just given the right answer."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Kernel = Callable[..., Tensor]


def _picks_best(best_query: Kernel, device: torch.device) -> bool:
    across, rows = torch.rand(5, 50, 70, device=device), torch.rand(40, 5, device=device)
    weights, sources = rows.topk(5, dim=1)
    expected = torch.einsum("ya,awq->ywq", rows, across).argmax(dim=-1)
    return bool((best_query(across, sources, weights) == expected).float().mean() > 0.99)  # but for rounding


def _is_quick_gelu(quick_gelu_: Kernel, device: torch.device) -> bool:
    x = torch.randn(3000, device=device, dtype=torch.float16)
    return torch.allclose(
        quick_gelu_(x.clone()).float(), x.float() * (1.702 * x.float()).sigmoid(), atol=1e-3, rtol=1e-2
    )


CHECKS: dict[str, Callable[[Any, torch.device], bool]] = {"best_query": _picks_best, "quick_gelu_": _is_quick_gelu}


@functools.lru_cache(maxsize=32)
def fused(name: str, device: torch.device) -> Kernel | None:
    """The kernel of that name, or None where there is none: no GPU, no C compiler, a wrong answer to an example.

    Where a GPU has none, a warning says so once.
    """
    if device.type != "cuda":
        return None
    try:
        from clearclip import kernels

        kernel: Kernel = getattr(kernels, name)
        if CHECKS[name](kernel, device):
            return kernel
        log.warning("the fused kernel %s is wrong on %s; using the slower path", name, device)
    except Exception as error:  # whatever a compiler raises
        log.warning("no fused kernel %s on %s (%s); using the slower path", name, device, type(error).__name__)
    return None
