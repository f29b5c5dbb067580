"""A GPU that is not there: networks on fake CUDA tensors, which have shapes, types and devices and hold no numbers."""

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clearclip import tensors

CUDA = torch.device("cuda:0")
COPIES = (torch.ops.aten.to, torch.ops.aten._to_copy, torch.ops.aten.copy_)
CACHES = [f"clearclip.{name}" for name in ("windows", "decode", "vision", "methods.lposs", "methods.radseg")]


class Traffic(TorchDispatchMode):
    """Notes what passes between host and device: type and shape of each tensor that goes up, or comes down."""

    def __init__(self):
        super().__init__()
        self.up, self.down = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given, made = (tensors_of(tree) for tree in ((args, kwargs), out))
        copies = func.overloadpacket in COPIES
        for tensor in given:  # other operators take a number on the host as an argument of their kernel
            if tensor.device.type == "cpu" and (tensor.ndim or copies) and any(t.device.type == "cuda" for t in made):
                self.up.append((tensor.dtype, tuple(tensor.shape)))
            if tensor.device.type == "cuda" and any(t.device.type == "cpu" for t in made):
                self.down.append((tensor.dtype, tuple(tensor.shape)))
        return out


def tensors_of(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Kept(dict):
    """A `TensorCache` that keeps fake tensors too; take it in the modules that `CACHES` names."""

    def __init__(self, max_bytes):
        super().__init__()

    def get(self, key, make):
        if key not in self:
            self[key] = make()
        return self[key]

    def __deepcopy__(self, memo):
        return Kept(0)


def fake(tensor, mode):
    """A tensor as it would lie on the GPU, in fp16 where it is of floating point."""
    with mode:
        dtype = torch.float16 if tensor.is_floating_point() else tensor.dtype
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device=CUDA)


def on_fake_gpu(module, mode):
    """The module with its parameters and buffers on the fake GPU, where `to` leaves it."""
    for child in module.modules():
        for kind in (child._parameters, child._buffers):
            for name, tensor in kind.items():
                if tensor is not None:
                    made = fake(tensor, mode)
                    kind[name] = nn.Parameter(made, requires_grad=False) if kind is child._parameters else made
        if isinstance(getattr(child, "constants", None), tensors.TensorCache):
            child.constants = Kept(0)
        if hasattr(child, "dtype") and hasattr(child, "device"):
            for name, value in (("dtype", torch.float16), ("device", CUDA)):
                if name in vars(child):
                    setattr(child, name, value)
    module.to = lambda *arguments: module
    return module


def eyes_on_fake_gpu(model, mode):
    """The same for a `TimmViT`, whose position embedding lies on the CPU."""
    on_fake_gpu(model, mode).embedding = mode.from_tensor(model.embedding)
    return model
