"""Tensors that geometry alone decides, made once: position embeddings, neighbourhoods, stitching operators."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor


class TensorCache:
    """Tensors by key; beyond `max_bytes` those unused for longest are dropped.

    Copies and pickles of a cache are empty. What a tracer makes (`torch.export`, `torch.compile`, fake tensors) is
    handed on and not kept, for it means nothing to the next call.

        cache = TensorCache(max_bytes=1 << 20)
        cache.get(("eye", 3), lambda: torch.eye(3))
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self._tensors: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of that key, from `make` where it is not here."""
        if key in self._tensors:
            self._tensors.move_to_end(key)
            return self._tensors[key]
        with torch.inference_mode(False), torch.no_grad():  # usable in any mode later
            tensor = make()
        if type(tensor) is Tensor and not torch.compiler.is_compiling():
            self._tensors[key] = tensor
            self._bytes += tensor.nbytes
            while self._bytes > self.max_bytes:
                self._bytes -= self._tensors.popitem(last=False)[1].nbytes
        return tensor

    def __len__(self) -> int:
        return len(self._tensors)

    def __reduce__(self) -> tuple:
        return type(self), (self.max_bytes,)

    def __deepcopy__(self, memo: dict) -> "TensorCache":
        return type(self)(self.max_bytes)
