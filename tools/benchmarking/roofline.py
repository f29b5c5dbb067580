"""What a GPU would have to do for a batch of images, operator by operator, and the least time that it can take."""

import contextlib
import importlib
from dataclasses import dataclass, field
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarking.fake_gpu import CACHES, CUDA, Kept, tensors_of

aten = torch.ops.aten
ALLOCATIONS = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}
FILLS = {aten.zeros, aten.ones, aten.full, aten.new_zeros, aten.new_ones, aten.new_full, aten.zeros_like, aten.arange}

ELEMENTWISE = {"quick_gelu_", "gelu", "mul_", "silu_", "div_", "add"}


@dataclass(frozen=True)
class GPU:
    """Rates in operations and bytes a second, as data sheets have them but for `matrix`.

    Attributes:
        matrix: of fp16 matrix products, the best that is seen of dense ones.
        single: of float32, without tensor cores.
        memory: of its memory.
        cache: of the caches next to its multiprocessors, all together.
        gap: seconds from one kernel to the next in a CUDA graph.
        host: seconds that the host needs to launch one without.
    """

    name: str
    matrix: float = 790e12
    single: float = 67e12
    memory: float = 3.0e12
    cache: float = 29e12
    gap: float = 1e-6
    host: float = 5e-6


GPUS = (GPU("H100", memory=3.0e12), GPU("H200", memory=4.3e12))


@dataclass
class Launch:
    """One kernel.

    Attributes:
        name: of its operator.
        stage: "network", "decode" or "count".
        block: the block that it is of, where torch.compile sees it.
        flops: of its matrix products, or 0.
        half: whether these are of fp16.
        reads, writes: bytes by memory that they lie in.
        cached: bytes that it reads from caches.
    """

    name: str
    stage: str
    block: int | None
    flops: float
    half: bool
    reads: dict = field(default_factory=dict)
    writes: dict = field(default_factory=dict)
    cached: float = 0

    @property
    def bytes(self):
        return sum(self.reads.values()) + sum(self.writes.values())

    @property
    def elementwise(self):
        """Whether it acts on each number by itself."""
        return self.name in ELEMENTWISE

    @property
    def in_vit(self):
        """Whether it is one of the ViT's matrix products, those of attention among them."""
        return self.stage == "network" and self.half and self.flops > 0

    def seconds(self, gpu):
        """The least that it takes, its gap not included."""
        return max(
            self.flops / (gpu.matrix if self.half else gpu.single), self.bytes / gpu.memory, self.cached / gpu.cache
        )


class Ledger(TorchDispatchMode):
    """Notes the kernels that PyTorch launches on a GPU, and the bytes that go up to it."""

    def __init__(self):
        super().__init__()
        self.launches, self.uploads, self.stage, self.block = [], 0, "network", None
        self._alive = []  # so that no memory's name is given twice

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, kind = kwargs or {}, func.overloadpacket
        if kind == aten.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if kind not in flop_registry and kind not in (aten.to, torch.ops.prim.device):
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        given, made = tensors_of((args, kwargs)), tensors_of(out)
        if any(t.device.type == "cpu" and t.ndim for t in given) and any(t.device == CUDA for t in made):
            self.uploads += sum(t.nbytes for t in given if t.device.type == "cpu")
        elif any(t.device == CUDA for t in made) and kind not in ALLOCATIONS:
            self._note(func, given, made, args, kwargs, out)
        return out

    def _note(self, func, given, made, args, kwargs, out):
        kind, changes = func.overloadpacket, func._schema.is_mutable
        old = {memory(t) for t in given}
        if not changes and all(memory(t) in old for t in made):
            return  # a view
        flops = flop_registry[kind](*args, **kwargs, out_val=out) if kind in flop_registry else 0
        half = bool(flops) and made[0].dtype == torch.float16
        launch = Launch(str(kind).removeprefix("aten."), self.stage, self.block, flops, half)
        for tensor in given:
            if tensor.device == CUDA and not (
                changes and kind in (aten.copy_, aten.fill_, aten.zero_) and tensor is args[0]
            ):
                launch.reads[memory(tensor)] = launch.reads.get(memory(tensor), 0) + touched(tensor)
        for tensor in made:
            launch.writes[memory(tensor)] = touched(tensor)
        self._keep(launch, [*given, *made])

    def _attention(self, q, k, v, attn_mask=None, **rest):
        """As one kernel that never writes its weights."""
        out = q.new_empty(*q.shape[:-3], q.shape[-2], q.shape[-3], v.shape[-1]).transpose(-3, -2)
        flops = 2 * q.shape[:-1].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])
        launch = Launch("attention", self.stage, self.block, flops, q.dtype == torch.float16)
        inputs = [t for t in (q, k, v, attn_mask) if t is not None]
        for tensor in {id(t): t for t in inputs}.values():
            launch.reads[memory(tensor)] = launch.reads.get(memory(tensor), 0) + touched(tensor)
        launch.writes[memory(out)] = touched(out)
        self._keep(launch, [*inputs, out])
        return out

    def _keep(self, launch, tensors):
        self.launches.append(launch)
        self._alive += [tensor.untyped_storage() for tensor in tensors]

    def best_query(self, across, sources, weights):
        """In place of the fused kernel: each of its rows reads `taps` rows of what is at full width."""
        out = across.new_empty(len(sources), across.shape[1], dtype=torch.int32)
        cells = out.numel() * across.shape[2]
        launch = Launch("best_query", self.stage, None, cells * (2 * sources.shape[1] + 2), False)
        launch.reads = {memory(across): touched(across)}
        launch.writes = {memory(out): touched(out)}
        launch.cached = cells * sources.shape[1] * across.itemsize
        self._keep(launch, [across, out])
        return out

    def quick_gelu_(self, hidden):
        """In place of the fused kernel."""
        launch = Launch("quick_gelu_", self.stage, self.block, 0, False)
        launch.reads, launch.writes = ({memory(hidden): touched(hidden)} for _ in range(2))
        self._keep(launch, [hidden])
        return hidden


def memory(tensor):
    return tensor.untyped_storage()._cdata


def touched(tensor):
    """Bytes of the numbers that a tensor shows, each once, however often it is repeated."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride()) if stride]
    return torch.Size(sizes).numel() * tensor.itemsize


@contextlib.contextmanager
def watched(ledger, backbone, kernels=True):
    """While the ledger watches, fused kernels are stood in for (or, without `kernels`, missing)."""
    run = type(backbone).run

    def of_block(self, index, tokens, grid):
        ledger.block = index
        try:
            return run(self, index, tokens, grid)
        finally:
            ledger.block = None

    def fused(name, device):
        return getattr(ledger, name) if kernels else None

    with contextlib.ExitStack() as stack:
        for module in ("clearclip.decode", "clearclip.backbones.openclip"):
            stack.enter_context(mock.patch.object(importlib.import_module(module), "fused", fused))
        stack.enter_context(mock.patch.object(type(backbone), "run", of_block))
        stack.enter_context(ledger)
        yield


@contextlib.contextmanager
def keeping():
    """What is cached stays, fake as it is."""
    with contextlib.ExitStack() as stack:
        for module in CACHES:
            stack.enter_context(mock.patch.object(importlib.import_module(module), "TensorCache", Kept))
        yield


def compiled(launches):
    """The same as torch.compile would leave them: what is between two matrix products of a block is one kernel.

    It reads what it has not made, and writes what others read, or what was there before.
    """
    return _fused(launches, lambda launch: launch.block, lambda launch: False)


def ideal(launches):
    """The same as the best of compilers would: no bounds between blocks, and what acts on each number by itself (the
    activation, the skip) is done by the matrix product before it, whose result never exists without it."""
    return _fused(launches, lambda launch: launch.stage == "network" or None, lambda launch: launch.elementwise)


def _fused(launches, graph, joins):
    """Launches of one `graph` (None: of none) that lie between two matrix products as one, or, where one `joins` the
    product before it, as a part of that."""
    last_read = {name: index for index, launch in enumerate(launches) for name in launch.reads}
    result, run = [], []

    def close(after):
        if run:
            result.append(_together(run, lambda name: last_read.get(name, after) >= after))
            run.clear()

    for index, launch in enumerate(launches):
        alone = graph(launch) is None or launch.flops
        if run and (alone or graph(run[-1]) != graph(launch) or (run[0].flops and not joins(launch))):
            close(index)
        run.append(launch)
        if graph(launch) is None:
            close(index + 1)
    close(len(launches))
    return result


def _together(run, needed):
    """One launch in place of several; of what they write, what is `needed` later."""
    if len(run) == 1:
        return run[0]
    first = run[0]
    one = Launch("fused", first.stage, first.block, first.flops, first.half, cached=first.cached)
    if first.flops:
        one.name = f"{first.name} and more"
    made = set()
    for launch in run:
        one.reads |= {k: v for k, v in launch.reads.items() if k not in made and k not in one.reads}
        one.writes |= launch.writes
        made |= launch.writes.keys()
    one.writes = {name: size for name, size in one.writes.items() if needed(name)}
    return one


@dataclass(frozen=True)
class Prediction:
    """Of a GPU and one image: kernels, seconds on the device, of the host, and of the ViT's matrix products."""

    launches: float
    device: float
    host: float
    vit: float

    @property
    def share(self):
        """Of the ViT's matrix products in the time on the device."""
        return self.vit / self.device


def predict(launches, gpu, images):
    """The `Prediction` of an image, from the launches of a batch."""
    device = sum(launch.seconds(gpu) + gpu.gap for launch in launches)
    vit = sum(launch.flops for launch in launches if launch.in_vit) / gpu.matrix
    return Prediction(*(value / images for value in (len(launches), device, gpu.host * len(launches), vit)))
