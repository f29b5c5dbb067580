"""What may follow the scores: refinements of dense maps by the image itself, for any method."""

from collections.abc import Callable

from torch import Tensor


def split_refinement(method: str) -> tuple[str, Callable[[Tensor, Tensor], Tensor] | None]:
    """ "NACLIP+PAMR" to "NACLIP" and its refinement, a function of an image [3, H, W] and maps [C, H, W]; or None."""
    name, plus, suffix = method.rpartition("+")
    if not plus or suffix.lower() != "pamr":
        return method, None
    from clearclip.refine.pamr import pamr

    return name, pamr
