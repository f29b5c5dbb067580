"""Files of weights, read as data: tensors by name. Nothing that a file holds is ever run.

A PyTorch file is raw numbers beside a pickle, which is a program. `torch.jit.load` also runs the code in an archive,
and any installed library can add to what `torch.load` may call. Here only the few instructions that build containers
and name tensors are followed, classes and functions stay mere names, and a tensor is read when its name is asked for.

The formats: safetensors (https://huggingface.co/docs/safetensors), the zip files of `torch.save` and `torch.jit.save`
(https://pytorch.org/docs/stable/notes/serialization.html), and the plain pickles that `torch.save` wrote before 1.6.
"""

import contextlib
import hashlib
import io
import math
import mmap
import os
import pickletools
import re
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from clearclip.errors import UserError
from clearclip.paths import atomic_write, cache_dir

if TYPE_CHECKING:  # hashes need no PyTorch, which takes seconds to import
    import torch
    from torch import Tensor

# What a pickle of tensors may name. `_call` makes dicts and tensors of five of them; the others stay names.
NAMES = re.compile(
    r"collections\.(OrderedDict|Counter|defaultdict)"
    r"|(builtins|__builtin__)\.(set|bytearray)|_codecs\.encode"
    r"|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2"
    r"|torch\.(Tensor|Size|device|nn\.parameter\.Parameter|serialization\._get_layout)"
    r"|torch\.(storage\.)?\w+Storage|torch\.[a-z]+\d\w*|torch\.(bool|per_tensor_affine|per_channel_affine)"
    r"|torch\.jit\._pickle\.\w+|__torch__\..+|argparse\.Namespace"
)
DTYPES = {
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.DoubleStorage": "float64",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    "torch.ComplexFloatStorage": "complex64",
    "torch.ComplexDoubleStorage": "complex128",
    "torch.storage.UntypedStorage": "uint8",
}
UNUSUAL = {"sparse": "sparse", "meta": "meta", "qtensor": "quantised", "nested": "nested"}
DAMAGED = "it is damaged, or holds more than tensors; fetch it again, or convert it to .safetensors"
MOST_MODULES = 20_000  # modules that hold one another would be walked for ever
MOST_AXES = 64  # PyTorch's own limit
MOST_CODE = 16 << 20  # bytes of one source file, unpacked
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
SETTLED_NS = 3_000_000_000  # a change within one tick of a file system's clock, 2 s on the coarsest, leaves no trace


class _Refused(Exception):
    """Why a file is not taken: the rest of the sentence "… cannot be read as weights: "."""


@dataclass
class _Object:
    """A class or function that a pickle names, or what calling it would have made. It is never called."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None  # of a module, its attributes by name


@dataclass(frozen=True)
class _Storage:
    """A run of numbers in a file."""

    kind: str  # a key of `DTYPES`, or another type
    key: str
    count: int


@dataclass(frozen=True)
class _Stored:
    """A tensor still in its file; offset and strides count numbers, not bytes."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


# The public functions


def load_state_dict(path: str | Path, prefix: str = "") -> "dict[str, Tensor]":
    """Read the tensors of a file whose names start with `prefix`; the prefix is removed.

    Takes .safetensors, and under any other suffix PyTorch's files (with or without the wrappers `state_dict`, `model`
    and `module.`) and TorchScript archives such as OpenAI's; of these the names are those of
    `torch.jit.load(path).state_dict()`. The tensors are on the CPU and share memory with the file where the format
    allows. Nothing in the file is run.

    Raises:
        UserError: the file is damaged, asks for code to be run, or holds under these names NaN, infinity, or anything
            but plain tensors of real numbers (sparse, quantised, complex and meta tensors, 8-bit floats).
    """
    path = Path(path)
    with _named(path):
        read = _read_safetensors if path.suffix == ".safetensors" else _read_pytorch
        state = {name: _plain(prefix + name, value) for name, value in read(path, prefix).items()}
    if name := _first_infinite(state):
        raise UserError(
            f"{path} holds NaN or infinity in {_shown(prefix + name)}; fetch it again, or use other weights"
        )
    return state


def overflowing(state: "Mapping[str, Tensor]", dtype: "torch.dtype") -> str | None:
    """The first tensor with a number that is infinite in `dtype`, as 70000 is in float16."""
    return _first_infinite(state, dtype)


def marked_activation(path: str | Path) -> str | None:
    """The activation that a file says its network was trained with: "quick_gelu", "gelu", or None where it is silent.

    Our own .safetensors carry it in their metadata; TorchScript archives are OpenAI's, all trained with QuickGELU.
    Raises UserError where the file holds no weights.
    """
    path = Path(path)
    with _named(path):
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with path.open("rb"), safe_open(path, framework="pt") as file:
                return (file.metadata() or {}).get("activation")
        with _opened(path) as (file, memory):
            if memory[:4] == b"PK\x03\x04":
                return "quick_gelu" if _Archive(file, memory).scripted else None
            if memory[:1] != b"\x80":  # a pickle's
                raise _Refused(DAMAGED)
            return None


def content_hash(path: str | Path) -> str:
    """SHA-256 of a file, remembered so that a warm start need not read hundreds of megabytes again.

    What is remembered holds for one device, inode, size, time of writing, time of change (which, unlike the time of
    writing, no program can set) and a sample of the contents. So weights replaced by others are noticed, whatever
    their size and time stamp. On file systems without inodes or times of change of their own (some network mounts)
    the sample alone tells: there a change that misses all 16 blocks and keeps size and time is not seen.
    Raises UserError where the file cannot be read.
    """
    path = Path(path)
    with _named(path), path.open("rb") as file:
        started = time.time_ns()
        identity, changed = _identity(file)
        place = ":".join(identity.split(":")[:2])  # of hard links there is one file, of a replaced file one memo
        memo = cache_dir() / "hashes" / hashlib.sha256(place.encode()).hexdigest()
        if known := _remembered(memo, identity):
            return known
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if started - changed > SETTLED_NS:  # a change from now on shows in the identity
        with contextlib.suppress(OSError), atomic_write(memo) as temporary:  # a cache that cannot be written is no harm
            temporary.write_text(digest + _seal(identity, digest))
    return digest


# Errors


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn whatever a bad file causes into one sentence that names it."""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
            raise UserError(f"{path} cannot be read: it is no file; give the path of one")
        yield
    except (UserError, MemoryError):
        raise
    except _Refused as refused:
        raise UserError(f"{path} cannot be read as weights: {refused}") from None
    except OSError as error:
        if error.errno is None:  # a library's, about the contents
            raise UserError(f"{path} cannot be read as weights: {DAMAGED}") from error
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from error
    except Exception as error:
        raise UserError(f"{path} cannot be read as weights: {DAMAGED}") from error


def _shown(name: str) -> str:
    """A name out of a file, fit for one line on a terminal."""
    return ascii(name if len(name) <= 100 else f"{name[:100]}…")[1:-1]


def _plain(name: str, value: "Tensor | _Object") -> "Tensor":
    """The same value, a tensor that can be used as it is."""
    import torch

    if isinstance(value, _Object):
        function = value.name.removeprefix("torch._utils._rebuild_")
        kind = next((kind for start, kind in UNUSUAL.items() if function.startswith(start)), "unusual")
    else:
        dtype = value.dtype
        integers = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
        if dtype in integers or (dtype.is_floating_point and dtype.itemsize >= 2):
            return value
        kind = str(dtype).removeprefix("torch.")
    raise _Refused(f"{_shown(name)} is no plain tensor ({kind}); save plain tensors of 16-, 32- or 64-bit numbers")


def _first_infinite(state: "Mapping[str, Tensor]", dtype: "torch.dtype | None" = None) -> str | None:
    import torch

    for name, value in state.items():
        if not value.is_floating_point() or not value.numel() or name.endswith("attn_mask"):  # masks hold -inf
            continue
        extremes = torch.stack(torch.aminmax(value))  # NaN where there is one; casting keeps their order
        if not extremes.to(dtype or value.dtype).isfinite().all():
            return name
    return None


# Formats


def _read_safetensors(path: Path, prefix: str) -> "dict[str, Tensor | _Object]":
    from safetensors import safe_open

    with path.open("rb"), safe_open(path, framework="pt") as file:  # `open` says best why a file cannot be read
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


def _read_pytorch(path: Path, prefix: str) -> "dict[str, Tensor | _Object]":
    with _opened(path) as (file, memory):
        source = _Archive(file, memory) if memory[:4] == b"PK\x03\x04" else _Legacy(memory)
        state = source.state()
        for _ in range(3):
            state = next((state[key] for key in ("state_dict", "model") if isinstance(state.get(key), dict)), state)
        state = {str(key).removeprefix("module."): value for key, value in state.items() if _is_tensor(value)}
        return {
            name.removeprefix(prefix): value if isinstance(value, _Object) else _read(value, source.start, memory)
            for name, value in state.items()
            if name.startswith(prefix)
        }


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], mmap.mmap]]:
    """A file and its memory map: private, so that tensors in it can be written to and the file stays as it is."""
    with path.open("rb") as file:
        yield file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _is_tensor(value: object) -> bool:
    return isinstance(value, _Stored) or (
        isinstance(value, _Object) and value.name.startswith("torch._utils._rebuild_")
    )


def _read(tensor: _Stored, start: Callable[[_Storage], int], memory: mmap.mmap) -> "Tensor | _Object":
    """The tensor at `start(storage)` bytes into a file, after checking that it lies in its storage."""
    import torch

    storage, size, stride, offset = tensor.storage, tensor.size, tensor.stride, tensor.offset
    if storage.kind not in DTYPES:
        return _Object(storage.kind)
    dtype = getattr(torch, DTYPES[storage.kind])
    end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if all(size) else offset
    # Numbers used twice, as by `expand`, would let a small file fill the memory.
    if min((offset, *size, *stride)) < 0 or max(end, math.prod(size)) > storage.count:
        raise _Refused(DAMAGED)
    if not math.prod(size):
        return torch.empty(size, dtype=dtype)
    at = start(storage)
    numbers = torch.frombuffer(memory, dtype=torch.uint8, offset=at, count=storage.count * dtype.itemsize)
    if at % dtype.itemsize:  # as in legacy files; not every machine reads these
        numbers = numbers.clone()
    return numbers.view(dtype).as_strided(size, stride, offset)


class _Archive:
    """The zip file of torch.save or torch.jit.save: ROOT/data.pkl, and the numbers of each storage in ROOT/data/KEY."""

    def __init__(self, file: IO[bytes], memory: mmap.mmap):
        self.memory = memory
        self.zip = zipfile.ZipFile(file)
        self.entries = {entry.filename: entry for entry in self.zip.infolist()}
        twice = len(self.entries) < len(self.zip.infolist())
        roots = [name.split("/")[0] for name in self.entries if re.fullmatch("[^/]+/data.pkl", name)]
        if twice or len(roots) != 1 or any(name[0] == "/" or ".." in name.split("/") for name in self.entries):
            raise _Refused(DAMAGED)
        self.root = roots[0]
        self.scripted = any(name.startswith(f"{self.root}/code/") for name in self.entries)
        self.starts: dict[_Storage, int] = {}
        self.sources: dict[str, dict[str, str]] = {}

    def state(self) -> dict[str, Any]:
        at, size = self._record("data.pkl")
        if f"{self.root}/byteorder" in self.entries:
            start, length = self._record("byteorder")
            if self.memory[start : start + length].decode() != sys.byteorder:
                raise _Refused("it is of a machine with another byte order; convert it to .safetensors")
        content = _unpickle(io.BytesIO(self.memory[at : at + size]), {})
        return self._walk(content) if self.scripted else content

    def start(self, storage: _Storage) -> int:
        if storage not in self.starts:
            self.starts[storage], length = self._record(f"data/{storage.key}")
            if length != storage.count * _width(storage):
                raise _Refused(DAMAGED)
        return self.starts[storage]

    def _record(self, name: str) -> tuple[int, int]:
        """Where an entry starts, in bytes, and its length; it is stored, not packed, and as its checksum says."""
        entry = self.entries[f"{self.root}/{name}"]
        header, size = entry.header_offset, entry.file_size
        signature, *lengths = struct.unpack_from("<4s22xHH", self.memory, header)
        start = header + 30 + sum(lengths)
        stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == size
        if signature != b"PK\x03\x04" or not stored or start + size > len(self.memory):
            raise _Refused(DAMAGED)
        # PyTorch can be told to write no checksums, and then writes 0.
        if entry.CRC and zlib.crc32(memoryview(self.memory)[start : start + size]) != entry.CRC:
            raise _Refused(DAMAGED)
        return start, size

    def _walk(self, module: _Object) -> dict[str, Any]:
        """Parameters and buffers below a module by their dotted names, as its `state_dict` would give them."""
        state: dict[str, Any] = {}
        waiting = [("", module)]
        for _ in range(MOST_MODULES):
            if not waiting:
                return state
            prefix, module = waiting.pop()
            named = self._parameters_and_buffers(module)
            for name, value in module.state.items():
                if name in named:
                    state[prefix + name] = value
                elif isinstance(value, _Object) and value.name.startswith("__torch__.") and value.state is not None:
                    waiting.append((f"{prefix}{name}.", value))
        raise _Refused(DAMAGED)

    def _parameters_and_buffers(self, module: _Object) -> set[str]:
        """What the source of a module's class lists: other tensors, such as a mask, do not belong to its state."""
        place, _, name = module.name.rpartition(".")
        body = self._classes(place)[name]
        if "def __setstate__" in body:
            raise _Refused(f"its {_shown(name)} is rebuilt by code, which is not run; save the tensors as .safetensors")
        lists = re.findall(r"^ *__(?:parameters|buffers)__ = \[(.*)\]", body, re.MULTILINE)
        return set(re.findall(r'"([^"]*)"', " ".join(lists)))

    def _classes(self, place: str) -> dict[str, str]:
        """The source of each class in `__torch__.package.module`."""
        if place not in self.sources:
            with self.zip.open(f"{self.root}/code/{place.replace('.', '/')}.py") as file:
                source = file.read(MOST_CODE + 1).decode()
            if len(source) > MOST_CODE:
                raise _Refused(DAMAGED)
            bodies = re.split(r"^class ", source, flags=re.MULTILINE)[1:]
            self.sources[place] = {re.split(r"\W", body, maxsplit=1)[0]: body for body in bodies}
        return self.sources[place]


class _Legacy:
    """The file of torch.save before PyTorch 1.6: five pickles, and then each storage: its count and its numbers."""

    def __init__(self, memory: mmap.mmap):
        self.memory = memory
        self.starts: dict[_Storage, int] = {}

    def state(self) -> dict[str, Any]:
        storages: dict[str, _Storage] = {}
        magic, protocol, machine = (_unpickle(self.memory, {}) for _ in range(3))
        if (magic, protocol, machine["little_endian"]) != (LEGACY_MAGIC, LEGACY_PROTOCOL, sys.byteorder == "little"):
            raise _Refused(DAMAGED)
        content = _unpickle(self.memory, storages)
        keys = _unpickle(self.memory, {})
        at = self.memory.tell()
        for key in keys:
            storage = storages[key]
            (count,) = struct.unpack_from("<q", self.memory, at)
            self.starts[storage] = at + 8
            at += 8 + count * _width(storage)
            if count != storage.count or at > len(self.memory):
                raise _Refused(DAMAGED)
        return content

    def start(self, storage: _Storage) -> int:
        return self.starts[storage]


def _width(storage: _Storage) -> int:
    """Bytes of one number."""
    import torch

    return getattr(torch, DTYPES[storage.kind]).itemsize


# Pickles


def _unpickle(file: IO[bytes] | mmap.mmap, storages: dict[str, _Storage]) -> Any:
    """Follow a pickle in an open file or a memory map up to its end; return the containers and tensors it describes.

    The storages it mentions are added to `storages`. Raises `_Refused` at the first thing it names that no file of
    tensors needs, and any other exception for a pickle that is damaged.
    """
    stack: list[Any] = []
    marks: list[int] = []  # sizes of the stack
    memo: dict[int | None, Any] = {}

    def since_mark() -> list[Any]:
        mark = marks.pop()
        items = stack[mark:]
        del stack[mark:]
        return items

    for opcode, value, _ in pickletools.genops(file):  # type: ignore[arg-type]  # it calls read, readline and tell
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT":
                stack.append(value)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINSTRING" | "SHORT_BINSTRING" | "BINBYTES" | "SHORT_BINBYTES":
                stack.append(value)
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS" | "ADDITEMS":
                items = since_mark()
                stack[-1].extend(items)
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM":
                items = [stack.pop(), stack.pop()]
                _set(stack[-1], items[::-1])
            case "SETITEMS":
                items = since_mark()
                _set(stack[-1], items)
            case "GLOBAL":
                stack.append(_allowed(*str(value).split(" ")))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_allowed(module, name))
            case "REDUCE" | "NEWOBJ":
                args = stack.pop()
                stack.append(_call(stack.pop(), args))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], _Object):  # of others it is an attribute, as `_metadata` of a state dict
                    stack[-1].state = state
            case "BINPERSID":
                storage = _storage(*stack.pop())
                storages[storage.key] = storage
                stack.append(storage)
            case _:
                raise _Refused(DAMAGED)


def _set(container: object, items: list[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int | float | bytes | None):  # hashing nested tuples can exhaust the C stack
            raise _Refused(DAMAGED)
        if isinstance(container, dict):
            container[key] = value
        elif not isinstance(container, _Object):  # such as a Counter, of no use here
            raise _Refused(DAMAGED)


def _allowed(module: str, name: str) -> _Object:
    full = ".".join((module, name))
    if not NAMES.fullmatch(full):
        raise _Refused(f"it asks for {_shown(full)}, which is not run; convert its tensors to .safetensors")
    return _Object(full)


def _call(function: _Object, args: tuple[Any, ...]) -> Any:
    """What a call in a pickle stands for: a dict, a stored tensor, or an object never made."""
    match function.name:
        case "collections.OrderedDict" if not args:
            return {}
        case "torch._utils._rebuild_tensor_v2" if not any(args[6:]):  # else values to be negated or conjugated
            storage, offset, size, stride = args[:4]
            numbers = all(isinstance(number, int) for number in (offset, *size, *stride))
            if not isinstance(storage, _Storage) or not numbers or len(size) > MOST_AXES:
                raise _Refused(DAMAGED)
            return _Stored(storage, offset, size, stride)
        case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state":
            return args[0]
        case "torch._tensor._rebuild_from_type_v2":  # a tensor with attributes
            return _call(args[0], args[2])
    return _Object(function.name, args)


def _storage(label: str, kind: _Object, key: str, device: str, count: int, view: None = None) -> _Storage:
    if label != "storage" or view is not None or count < 0 or not isinstance(key, str):
        raise _Refused(DAMAGED)
    return _Storage(kind.name, key, count)


# Hashes


def _identity(file: IO[bytes]) -> tuple[str, int]:
    """All that tells a file from another without reading it whole, and its time of change in nanoseconds."""
    status = os.fstat(file.fileno())  # of the open file: network file systems are asked anew
    sample = hashlib.sha256()
    for part in range(16):
        file.seek(max(status.st_size - 4096, 0) * part // 15)
        sample.update(file.read(4096))
    numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return ":".join(map(str, (*numbers, sample.hexdigest()))), status.st_ctime_ns


def _seal(identity: str, digest: str) -> str:
    return hashlib.sha256(f"{identity}:{digest}".encode()).hexdigest()


def _remembered(memo: Path, identity: str) -> str | None:
    """The digest in a memo that was written for this very file and is whole."""
    try:
        text = memo.read_text(errors="replace")
    except OSError:
        return None
    digest, seal = text[:64], text[64:]
    return digest if seal == _seal(identity, digest) else None
