"""Files of weights as data: every good form is read, nothing in a bad one runs, and a changed file is noticed."""

import contextlib
import functools
import io
import json
import os
import pickle
import re
import shutil
import socket
import struct
import sys
import tarfile
import time
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from conftest import TINY_CONFIG
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from clearclip import state
from clearclip.errors import UserError
from clearclip.state import content_hash, load_state_dict, marked_activation, overflowing

pytestmark = pytest.mark.filterwarnings("error", "ignore:.*(torch.jit|TorchScript):")
TENSORS = {
    "visual.proj": torch.arange(12.0).view(3, 4),
    "visual.fp16": torch.linspace(-1, 1, 5).half(),
    "visual.strided": torch.arange(6.0).view(2, 3).t(),
    "scale": torch.tensor(4.6),
    "bf16": torch.ones(3, dtype=torch.bfloat16),
    "steps": torch.tensor([1, 2], dtype=torch.int64),
    "fp64": torch.ones(2, dtype=torch.float64),
    "none": torch.empty(0, 3),
}


NUMBERS = np.arange(4, dtype=np.float32).tobytes()  # the storage of a file made by hand


class Part(torch.nn.Module):
    """What TorchScript turns into an archive."""

    def forward(self, x):
        return x


def scripted(tensors, path):
    root = Part()
    for key, value in tensors.items():
        *names, leaf = key.split(".")
        part = root
        for name in names:
            if not hasattr(part, name):
                part.add_module(name, Part())
            part = getattr(part, name)
        if value.is_floating_point():
            part.register_parameter(leaf, torch.nn.Parameter(value))
        else:
            part.register_buffer(leaf, value)
    save_script(torch.jit.script(root), path)


def save_script(module, path):
    torch.jit.save(module, path)


def repack(path, change):
    """Write a zip file anew; `change(name, content)` gives an entry's new content, or None to leave it out."""
    with zipfile.ZipFile(path) as source:
        entries = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, content in entries.items():
            if (content := change(name, content)) is not None:
                target.writestr(name, content)


class Storage:
    """A persistent id, as PyTorch's pickles refer to the numbers in other parts of the file."""

    def __init__(self, count, kind=torch.FloatStorage, key="0"):
        self.id = ("storage", kind, key, "cpu", count)


class Call:
    """Whatever unpickling this calls."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def stored(size, stride, offset=0, storage=None):
    return Call(torch._utils._rebuild_tensor_v2, storage or Storage(4), offset, size, stride, False, OrderedDict())


def dumps(content, protocol=2):
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol)
    pickler.persistent_id = lambda value: getattr(value, "id", None)
    pickler.dump(content)
    return buffer.getvalue()


def save_zip(program, path, **more):
    """A zip file of torch.save's layout around any pickle."""
    with zipfile.ZipFile(path, "w") as target:
        for name, content in {"data.pkl": program, "data/0": NUMBERS, "version": "3\n", **more}.items():
            target.writestr(f"archive/{name}", content)


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype
        assert torch.equal(actual[name], value)


def assert_refused(path, match="cannot be read as weights: "):
    """One sentence on one line, which begins with the file's name."""
    with pytest.raises(UserError) as raised:
        load_state_dict(path)
    message = str(raised.value)
    assert message.startswith(f"{path} ")
    assert re.search(match, message), message
    assert message.isprintable()
    assert ". " not in message


# Good files

FORMS = {
    "model.safetensors": lambda tensors, path: save_file({k: v.contiguous() for k, v in tensors.items()}, path),
    "plain.pt": torch.save,
    "fourth.pt": lambda tensors, path: torch.save(tensors, path, pickle_protocol=4),
    "legacy.pth": lambda tensors, path: torch.save(tensors, path, _use_new_zipfile_serialization=False),
    "scripted.pt": scripted,
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_read(name, tmp_path):
    FORMS[name](TENSORS, tmp_path / name)
    assert_equal(load_state_dict(tmp_path / name), TENSORS)
    visual = {key.removeprefix("visual."): value for key, value in TENSORS.items() if key.startswith("visual.")}
    assert_equal(load_state_dict(tmp_path / name, "visual."), visual)
    assert load_state_dict(tmp_path / name, "nothing.") == {}


@pytest.mark.parametrize("name", FORMS)
def test_tensors_are_aligned_and_can_be_written_to_and_the_file_stays(name, tmp_path):
    FORMS[name](TENSORS, tmp_path / name)
    before = (tmp_path / name).read_bytes()
    for value in load_state_dict(tmp_path / name).values():
        assert value.data_ptr() % value.element_size() == 0
        value.zero_()
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("legacy", [False, True])
def test_wrappers_and_what_else_a_training_run_saves(legacy, tmp_path):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = model.state_dict()  # an OrderedDict with attributes
    modules = OrderedDict((f"module.{key}", value) for key, value in state.items())
    rest = {"epoch": 3, 7: "seven", "optimizer": optimizer.state_dict(), "rng": b"abc", "best": 1.5, "when": None}
    rest |= {"size": torch.Size([1]), "type": torch.float32, "device": torch.device("cpu"), "done": {1}, "big": 1 << 40}
    for content in (
        {**state, **rest},
        {"state_dict": modules, **rest},
        {"model": modules, **rest},
        {"model": {"state_dict": modules}, **rest},
        {key: torch.nn.Parameter(value) for key, value in state.items()},
    ):
        torch.save(content, tmp_path / "run.pt", _use_new_zipfile_serialization=not legacy)
        assert_equal(load_state_dict(tmp_path / "run.pt"), state)


def test_tensors_that_share_numbers(tmp_path):
    whole = torch.arange(10.0)
    tensors = {"whole": whole, "part": whole[2:8:2], "again": whole, "turned": whole.view(2, 5).t()}
    for legacy in (False, True):
        torch.save(tensors, tmp_path / "shared.pt", _use_new_zipfile_serialization=not legacy)
        assert_equal(load_state_dict(tmp_path / "shared.pt"), tensors)


def test_a_file_without_checksums(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(TENSORS, tmp_path / "unchecked.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert_equal(load_state_dict(tmp_path / "unchecked.pt"), TENSORS)


def test_only_the_numbers_asked_for_are_read(tmp_path, monkeypatch):
    scripted(TENSORS, tmp_path / "towers.pt")
    repack(tmp_path / "towers.pt", lambda name, content: None if name.endswith("/data/0") else content)
    with zipfile.ZipFile(tmp_path / "towers.pt") as archive:
        assert any(name.endswith("/data/1") for name in archive.namelist())
    lost = [name for name in TENSORS if not _has(tmp_path / "towers.pt", name)]
    assert len(lost) == 1
    assert_equal(
        {name: load_state_dict(tmp_path / "towers.pt", name)[""] for name in TENSORS if name not in lost},
        {name: value for name, value in TENSORS.items() if name not in lost},
    )


def _has(path, name):
    try:
        return bool(load_state_dict(path, name))
    except UserError:
        return False


# TorchScript archives


class Mixed(torch.nn.Module):
    """Attributes that are tensors and no part of the state, and one module under two names."""

    maybe: torch.Tensor | None

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.ones(3))
        self.plain, self.maybe, self.listed = torch.zeros(2), torch.zeros(2), [torch.zeros(2)]
        self.by_name, self.device, self.sizes = {"a": torch.zeros(2)}, torch.device("cpu"), [1, 2]
        self.layers = torch.nn.ModuleList([torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)])
        self.tied = self.layers[0]

    def forward(self, x):
        return x


@functools.cache
def tiny_clip():
    torch.manual_seed(0)
    return open_clip.CLIP(**TINY_CONFIG).eval()


def trace(model):
    images, text = torch.zeros(1, 3, 64, 64), torch.zeros(1, 77, dtype=torch.int64)
    with warnings.catch_warnings(action="ignore"):  # the trace holds for these sizes alone
        return torch.jit.trace_module(model, {"forward": (images, text), "encode_image": images}, check_trace=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.jit.script(tiny_clip()),
        lambda: trace(tiny_clip()),
        lambda: trace(tiny_clip()).half(),
        lambda: torch.jit.script(Mixed()),
        lambda: torch.jit.freeze(torch.jit.script(Mixed().eval()), preserved_attrs=["mean"]),
    ],
    ids=["scripted", "traced", "half", "mixed", "frozen"],
)
def test_an_archive_reads_as_torch_jit_reads_it(make, tmp_path):
    save_script(make(), tmp_path / "model.pt")
    assert_equal(load_state_dict(tmp_path / "model.pt"), torch.jit.load(tmp_path / "model.pt").state_dict())


def test_an_archive_of_a_pytorch_that_listed_no_buffers(tmp_path):
    save_script(torch.jit.script(tiny_clip()), tmp_path / "old.pt")
    repack(tmp_path / "old.pt", lambda _, content: re.sub(rb"\n  __buffers__ = .*", b"", content))
    assert_equal(load_state_dict(tmp_path / "old.pt"), torch.jit.load(tmp_path / "old.pt").state_dict())


def test_the_activation_is_read_from_the_file(tmp_path):
    scripted({"a": torch.ones(1)}, tmp_path / "openai.pt")
    torch.save({"a": torch.ones(1)}, tmp_path / "plain.pt")
    torch.save({"a": torch.ones(1)}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors", {"activation": "gelu"})
    save_file({"a": torch.ones(1)}, tmp_path / "b.safetensors")
    names = ("openai.pt", "plain.pt", "legacy.pt", "a.safetensors", "b.safetensors")
    assert [marked_activation(tmp_path / name) for name in names] == ["quick_gelu", None, None, "gelu", None]
    for name in names:
        (tmp_path / name).write_bytes(b"x" * 500)
        with pytest.raises(UserError, match=f"{name} cannot be read as weights: it is damaged, or"):
            marked_activation(tmp_path / name)


# Hostile files

EVENTS: list | None = None  # what Python's own audit saw, while it is a list


def _audit(event, args):
    if EVENTS is not None:
        EVENTS.append((event, str(args)))


sys.addaudithook(_audit)


@pytest.fixture
def victim(tmp_path):
    """A file that nothing may read or write, and a server that nothing may connect to."""
    path = tmp_path / "victim.txt"
    path.write_bytes(b"secret" * 20)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield SimpleNamespace(path=path, port=server.getsockname()[1])
    assert path.read_bytes() == b"secret" * 20


@contextlib.contextmanager
def nothing_runs(victim):
    """Fail where Python's audit sees the victim opened, a connection, a program started, or code run or looked up."""
    global EVENTS

    EVENTS = []
    try:
        yield
    finally:
        events, EVENTS = EVENTS, None
    assert any(event == "open" for event, _ in events)  # the audit works
    kinds = ("socket.connect", "os.system", "subprocess", "pickle.find_class", "exec", "ctypes")
    assert not [(event, args) for event, args in events if event.startswith(kinds) or str(victim.path) in args]


ACTIONS = {
    "write": lambda victim: Call(os.system, f"echo owned > {victim.path}"),
    "read": lambda victim: Call(Path.read_text, Call(Path, str(victim.path))),
    "connect": lambda victim: Call(socket.create_connection, ("127.0.0.1", victim.port)),
    "evaluate": lambda victim: Call(eval, f"open('{victim.path}', 'w')"),
    "through torch": lambda victim: Call(torch.from_file, str(victim.path), True, 8),
    "load more": lambda victim: Call(torch.load, str(victim.path)),
    "storage": lambda victim: Call(torch.FloatStorage.from_file, str(victim.path), True, 8),
    "attribute": lambda victim: Call(getattr, Call(__import__, "os"), "system"),
}


def plain_pickle(protocol):
    return lambda trap, path: path.write_bytes(pickle.dumps({"visual.proj": trap}, protocol))


def old_tar(trap, path):
    with tarfile.open(path, "w") as archive:
        for name, content in {
            "sys_info": pickle.dumps({"little_endian": True}),
            "storages": pickle.dumps(0) + pickle.dumps(trap),
            "tensors": pickle.dumps(trap),
            "pickle": pickle.dumps(trap),
        }.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def hostile_archive(trap, path):
    scripted(TENSORS, path)
    repack(path, lambda name, content: dumps(trap) if name.endswith("/data.pkl") else content)


def hostile_constants(trap, path):
    """A trap where this program never looks, and one where it does."""
    save_zip(dumps({"a": trap}), path, **{"constants.pkl": dumps(trap), "code/__torch__.py": "import os"})


def numpy_file(save):
    def write(trap, path):
        with path.open("wb") as file:
            save(file, np.array([trap], dtype=object), allow_pickle=True)

    return write


def in_machine_info(trap, path):
    parts = (state.LEGACY_MAGIC, state.LEGACY_PROTOCOL, {"little_endian": True, "more": trap}, {}, [])
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in parts))


WRITERS = {
    "zip": ("a.pt", lambda trap, path: torch.save({"state_dict": {"visual.proj": trap}}, path)),
    "zip, protocol 4": ("a.bin", lambda trap, path: torch.save({"a": trap}, path, pickle_protocol=4)),
    "zip by hand": ("a.pth", lambda trap, path: save_zip(dumps(trap), path)),
    "key": ("a.pt", lambda trap, path: save_zip(dumps(Call(dict, [(1, trap)])), path)),
    "array": ("a.pt", lambda trap, path: torch.save({"a": np.array([trap], dtype=object)}, path)),
    "legacy": (
        "a.pth",
        lambda trap, path: torch.save({"a": trap}, path, _use_new_zipfile_serialization=False),
    ),
    "legacy, first parts": ("a.bin", in_machine_info),
    "pickle": ("a.pt", plain_pickle(2)),
    "pickle, protocol 5": ("a.bin", plain_pickle(5)),
    "pickle, protocol 0": ("a.pth", plain_pickle(0)),
    "no suffix": ("weights", plain_pickle(4)),
    "pickle as safetensors": ("a.safetensors", plain_pickle(2)),
    "zip as safetensors": ("a.safetensors", lambda trap, path: save_zip(dumps(trap), path)),
    "tar": ("a.pt", old_tar),
    "archive": ("a.pt", hostile_archive),
    "archive by hand": ("a.pt", hostile_constants),
    "npy": ("a.pt", numpy_file(np.save)),
    "npz": ("a.pt", numpy_file(np.savez)),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("writer", WRITERS)
def test_code_in_a_file_is_not_run(writer, action, victim, tmp_path):
    name, write = WRITERS[writer]
    write(ACTIONS[action](victim), tmp_path / name)
    with nothing_runs(victim):
        assert_refused(tmp_path / name)
        with contextlib.suppress(UserError):
            marked_activation(tmp_path / name)


def test_what_a_pickle_asks_for_is_named(victim, tmp_path):
    save_zip(dumps({"a": ACTIONS["write"](victim)}), tmp_path / "a.pt")
    assert_refused(tmp_path / "a.pt", r"it asks for posix\.system, which is not run; convert its tensors to \.safeten")


COMMAND = b"echo owned>victim.txt"
INSTRUCTIONS = {
    "INST": b"(S'%b'\nios\nsystem\n." % COMMAND,
    "OBJ": b"\x80\x02(cos\nsystem\nU\x15%bo." % COMMAND,
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x15%b\x85R." % COMMAND,
    "NEWOBJ": b"\x80\x02cos\nsystem\nU\x15%b\x85\x81." % COMMAND,
    "NEWOBJ_EX": b"\x80\x04cos\nsystem\nU\x15%b\x85}\x92." % COMMAND,
    "EXT1": b"\x80\x02\x82\x01.",
    "a function's code": b"\x80\x02ctorch._utils\n_rebuild_parameter\n}U\x08__code__K\x00sb.",
    "a class's method": b"\x80\x02ccollections\nOrderedDict\n}U\x06__or__K\x00sb.",
    "a class as a dict": b"\x80\x02ccollections\nOrderedDict\n}U\x06__or__K\x00s\x85\x81.",
    "an allowed module": b"\x80\x02ctorch.jit._pickle\nos.system\nU\x15%b\x85R." % COMMAND,
    "an allowed function": b"\x80\x04\x8c\x0ctorch._utils\x8c\x14_rebuild_parameter.x\x93.",
    "a module's name": b"\x80\x02c__torch__.os\nsystem\nU\x15%b\x85R." % COMMAND,
    "an argument": b"\x80\x02ctorch._utils\n_rebuild_parameter\ncos\nsystem\n\x85R.",
    "a persistent id": b"\x80\x02U\x15%bQ." % COMMAND,
}


@pytest.mark.parametrize("case", INSTRUCTIONS)
def test_instructions_that_no_file_of_tensors_needs(case, victim, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_zip(INSTRUCTIONS[case], tmp_path / "a.pt")
    with nothing_runs(victim):
        assert_refused(tmp_path / "a.pt")


def test_those_files_are_hostile(tmp_path, monkeypatch):
    """Read without care they do what they say, so the tests above can fail."""
    monkeypatch.chdir(tmp_path)
    victim = SimpleNamespace(path=tmp_path / "victim.txt")
    for case in ("INST", "OBJ", "STACK_GLOBAL"):
        pickle.loads(INSTRUCTIONS[case])
        assert victim.path.read_text() == "owned\n"
        victim.path.unlink()
    for writer in ("zip", "zip by hand", "legacy"):
        WRITERS[writer][1](ACTIONS["write"](victim), tmp_path / "a.pt")
        torch.load(tmp_path / "a.pt", weights_only=False)
        assert victim.path.read_text() == "owned\n"
        victim.path.unlink()


class Reborn(torch.nn.Module):
    """A module that writes a file when its archive is opened; `torch.jit` saves this code with it."""

    def __init__(self, victim: str):
        super().__init__()
        self.victim = victim
        self.weight = torch.zeros(8)

    def forward(self, x):
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, torch.Tensor]:
        return self.victim, self.weight

    @torch.jit.export
    def __setstate__(self, state: tuple[str, torch.Tensor]):
        self.victim = state[0]
        self.weight = torch.from_file(self.victim, True, 8).fill_(1.0)
        self.training = False


@pytest.fixture
def reborn(tmp_path):
    """An archive, and the file it writes to."""
    (tmp_path / "target").write_bytes(bytes(64))
    save_script(torch.jit.script(Reborn(str(tmp_path / "target"))), tmp_path / "reborn.pt")
    (tmp_path / "target").write_bytes(bytes(64))
    return tmp_path / "reborn.pt", tmp_path / "target"


def test_torch_itself_runs_the_code_of_an_archive(reborn):
    """Why this program reads archives by itself: if this fails, PyTorch has mended it."""
    archive, target = reborn
    torch.jit.load(archive)
    assert target.read_bytes() == np.ones(8, np.float32).tobytes() + bytes(32)


def test_the_code_of_an_archive_is_not_run(reborn):
    archive, target = reborn
    assert_refused(archive, r"its Reborn is rebuilt by code, which is not run; save the tensors as \.safetensors")
    assert marked_activation(archive) == "quick_gelu"
    assert target.read_bytes() == bytes(64)


def test_code_that_would_take_plain_attributes_is_not_run(tmp_path):
    """The state is a dict as any module's; only the source says that code would have read it."""
    scripted(TENSORS, tmp_path / "a.pt")
    code = b"\n  def __setstate__(self, s: Dict[str, Any]) -> NoneType:\n    return None\n  def forward("
    repack(tmp_path / "a.pt", lambda name, content: content.replace(b"\n  def forward(", code))
    assert_refused(tmp_path / "a.pt", "is rebuilt by code")


# Damaged files


def archive_with(**changes):
    return lambda path: save_zip(dumps({"a": stored((4,), (1,))}), path, **changes)


def duplicate(path):
    save_zip(dumps({"a": stored((4,), (1,))}), path)
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(16))


def packed(path):
    save_zip(dumps({"a": stored((4,), (1,))}), path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/1", bytes(1 << 20))
        archive.writestr("archive/data.pkl.old", b"")
    repack(path, lambda name, content: None if name == "archive/data.pkl" else content)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", dumps({"a": stored((1 << 18,), (1,), storage=Storage(1 << 18, key="1"))}))


def declared(size, packed_size=None):
    """The directory, at the end, says how large entries are."""

    def write(path):
        save_zip(dumps({"a": stored((4,), (1,))}), path)
        content = bytearray(path.read_bytes())
        entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"archive/data/0"))
        struct.pack_into("<II", content, entry + 20, size if packed_size is None else packed_size, size)
        path.write_bytes(content)

    return write


def pointing(offset):
    def write(path):
        save_zip(dumps({"a": stored((4,), (1,))}), path)
        content = bytearray(path.read_bytes())
        entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"archive/data/0"))
        struct.pack_into("<I", content, entry + 42, offset)
        path.write_bytes(content)

    return write


def code_bomb(path):
    scripted({"a": torch.ones(1)}, path)
    with zipfile.ZipFile(path) as source:
        entries = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, content in entries.items():
            bomb = name.endswith(".py")
            target.writestr(
                name,
                content + bytes(state.MOST_CODE) if bomb else content,
                zipfile.ZIP_DEFLATED if bomb else zipfile.ZIP_STORED,
            )


ZIPS = {
    "two roots": archive_with(**{"../other/data.pkl": dumps({})}),
    "above": archive_with(**{"../../victim": b"x"}),
    "twice": duplicate,
    "packed": packed,
    "too few numbers": archive_with(**{"data/0": bytes(12)}),
    "too many numbers": archive_with(**{"data/0": bytes(20)}),
    "no numbers": lambda path: (archive_with()(path), repack(path, lambda n, c: c if n[-2:] != "/0" else None)),
    "no pickle": lambda path: (archive_with()(path), repack(path, lambda n, c: c if n[-3:] != "pkl" else None)),
    "huge": declared(0xFFFFFFF0),
    "huge when unpacked": declared(0xFFFFFFF0, 16),
    "small": declared(12),
    "outside": pointing(0x7FFFFFFF),
    "elsewhere": pointing(0),
    "far": pointing(0xFFFFFFFF),
    "a bomb of code": code_bomb,
    "other order": archive_with(byteorder="big"),
    "no order": archive_with(byteorder=b"\xff"),
    "empty archive": lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "a page": lambda path: path.write_text("<!doctype html><title>404</title>"),
}


@pytest.mark.parametrize("case", ZIPS)
def test_tricks_with_zip_files(case, tmp_path):
    ZIPS[case](tmp_path / "a.pt")
    assert_refused(tmp_path / "a.pt")


def test_the_zip_file_of_those_tests_is_good_untouched(tmp_path):
    archive_with()(tmp_path / "a.pt")
    assert_equal(load_state_dict(tmp_path / "a.pt"), {"a": torch.arange(4.0)})


def nested(depth):
    return b"\x80\x02" + b")" + b"\x85" * depth + b"."


def self_holding():
    return b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s."


PICKLES = {
    "beyond": dumps({"a": stored((5,), (1,))}),
    "stride beyond": dumps({"a": stored((2, 2), (3, 1))}),
    "offset beyond": dumps({"a": stored((1,), (1,), 4)}),
    "before": dumps({"a": stored((1,), (1,), -1)}),
    "backwards": dumps({"a": stored((4,), (-1,), 3)}),
    "negative size": dumps({"a": stored((-4,), (1,))}),
    "larger than the file": dumps({"a": stored((1 << 40,), (0,))}),
    "overflow": dumps({"a": stored((1 << 62, 1 << 62), (1 << 62, 1 << 62))}),
    "far apart": dumps({"a": stored((1,), (1 << 70,))}),
    "sizes without strides": dumps({"a": stored((2, 2), (1,))}),
    "words for sizes": dumps({"a": stored(("2",), (1,))}),
    "fractions for sizes": dumps({"a": stored((2.0,), (1,))}),
    "many axes": dumps({"a": stored((1,) * 100_000, (1,) * 100_000)}),
    "no storage": dumps({"a": stored((1,), (1,), storage=[1])}),
    "unknown storage": dumps({"a": stored((1,), (1,), storage=Storage(4, torch.QInt8Storage))}),
    "other count": dumps({"a": stored((1,), (1,), storage=Storage(1 << 50))}),
    "negative count": dumps({"a": stored((0,), (1,), storage=Storage(-1))}),
    "no count": dumps({"a": stored((1,), (1,), storage=Storage("4"))}),
    "other key": dumps({"a": stored((1,), (1,), storage=Storage(4, key="../version"))}),
    "a list": dumps([1, 2]),
    "a tensor": dumps(stored((4,), (1,))),
    "nothing": b"",
    "only an end": b".",
    "no end": b"\x80\x02}",
    "deep": nested(100_000),
    "deep key": b"\x80\x02})" + b"\x85" * 100_000 + b"K\x00s.",
    "unknown name": b"\x80\x02ctorch\n\x1b[2Jbell\x07" + b"x" * 5000 + b"\n.",
    "no mark": b"\x80\x02t.",
    "no memo": b"\x80\x02h\x05.",
    "long number": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "long text": b"\x80\x04\x8d" + b"\xff" * 8 + b".",
    "for ever": b"\x80\x02]q\x00h\x00a.",
}


@pytest.mark.parametrize("case", PICKLES)
def test_tricks_with_pickles(case, tmp_path):
    save_zip(PICKLES[case], tmp_path / "a.pt")
    assert_refused(tmp_path / "a.pt")
    parts = (state.LEGACY_MAGIC, state.LEGACY_PROTOCOL, {"little_endian": True})
    head = b"".join(pickle.dumps(part, 2) for part in parts)
    (tmp_path / "b.pt").write_bytes(head + PICKLES[case] + pickle.dumps(["0"], 2) + struct.pack("<q", 4) + bytes(16))
    assert_refused(tmp_path / "b.pt")


def test_a_dict_that_holds_itself_is_no_endless_wrapper(tmp_path):
    save_zip(self_holding(), tmp_path / "a.pt")
    assert load_state_dict(tmp_path / "a.pt") == {}


def test_modules_that_hold_one_another(tmp_path):
    def save(program):
        save_zip(b"\x80\x02" + program + b".", tmp_path / "a.pt", **{"code/__torch__.py": "class A(Module):\n"})

    def twice(depth):  # 2 ** depth names
        new = start + b"}b"
        return new + b"".join(b"q%c" % i + start + b"}(U\x01xh%cU\x01yh%cub" % (i, i) for i in range(depth))

    start = b"c__torch__\nA\n)\x81"
    save(twice(3))
    assert load_state_dict(tmp_path / "a.pt") == {}
    for program in (twice(64), start + b"q\x00}U\x01xh\x00sb"):
        save(program)
        assert_refused(tmp_path / "a.pt")


def header(value, numbers=bytes(16)):
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(text)) + text + numbers


def entry(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SAFETENSORS = {
    "beyond": header({"a": entry(offsets=(0, 32))}),
    "less": header({"a": entry(offsets=(0, 12))}),
    "backwards": header({"a": entry(offsets=(16, 0))}),
    "negative": header({"a": entry(offsets=(-16, 0))}),
    "other shape": header({"a": entry(shape=(5,))}),
    "huge shape": header({"a": entry(shape=(1 << 62, 1 << 62))}),
    "overlap": header({"a": entry(), "b": entry()}),
    "unknown type": header({"a": entry("F33")}),
    "no type": header({"a": {"shape": [4], "data_offsets": [0, 16]}}),
    "a hole": header({"a": entry(shape=(2,), offsets=(8, 16))}),
    "list": header([1]),
    "number": header(b"1"),
    "no text": header(b"\xff\xfe{}"),
    "cut": header({"a": entry()})[:30],
    "empty": b"",
    "long header": struct.pack("<Q", 1 << 40) + b"{}",
    "longest header": b"\xff" * 8 + b"{}",
    "deep": header(b'{"a":' * 100_000),
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_damaged_safetensors(case, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(SAFETENSORS[case])
    assert_refused(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="cannot be read as weights"):
        marked_activation(tmp_path / "a.safetensors")


def test_files_that_cannot_be_had(tmp_path):
    for suffix in (".pt", ".safetensors"):
        for read in (load_state_dict, marked_activation, content_hash):
            with pytest.raises(UserError, match=f"gone{suffix} cannot be read .No such file.*check the path"):
                read(tmp_path / f"gone{suffix}")
            with pytest.raises(UserError, match="cannot be read"):
                read(Path(f"a\0b{suffix}"))
            with pytest.raises(UserError, match=r"cannot be read \(File name too long\)"):
                read(tmp_path / ("a" * 5000 + suffix))
        os.mkfifo(tmp_path / f"pipe{suffix}")
        (tmp_path / f"folder{suffix}").mkdir()
        for name in ("pipe", "folder"):
            for read in (load_state_dict, marked_activation, content_hash):
                with pytest.raises(UserError, match=f"{name}{suffix} cannot be read"):
                    read(tmp_path / f"{name}{suffix}")


# Tensors that are no plain finite numbers


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_number_that_is_none_is_named(name, bad, dtype, tmp_path):
    weights = torch.linspace(-3, 3, 77).to(dtype)
    weights[41] = bad
    FORMS[name]({"visual.fine": torch.ones(3), "visual.proj": weights}, tmp_path / name)
    for prefix in ("", "visual."):
        with pytest.raises(UserError, match=rf"{name} holds NaN or infinity in visual\.proj; fetch it again, or use"):
            load_state_dict(tmp_path / name, prefix)
    assert set(load_state_dict(tmp_path / name, "visual.fine")) == {""}


def test_a_mask_may_be_infinite(tmp_path):
    state = {"text.attn_mask": torch.full((2, 2), -torch.inf), "attn_mask": torch.full((2, 2), -torch.inf)}
    torch.save(state, tmp_path / "a.pt")
    assert_equal(load_state_dict(tmp_path / "a.pt"), state)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.ones(2, device="meta"), "meta"),
        (torch.ones(2, dtype=torch.complex64), "complex64"),
        (torch.ones(2, dtype=torch.complex64).conj(), "unusual"),
        (torch.ones(2, dtype=torch.complex64).conj().imag, "unusual"),  # stored with the other sign
        (torch.ones(2).to(torch.float8_e4m3fn), "unusual"),
        (torch.ones(2, dtype=torch.uint16), "unusual"),
    ],
)
def test_other_tensors_are_named(tensor, kind, legacy, tmp_path):
    content = {"visual.proj": tensor, "text.proj": torch.ones(2)}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    assert_refused(tmp_path / "a.pt", rf"visual\.proj is no plain tensor \({kind}\); save plain tensors of 16-, 32-")
    assert_equal(load_state_dict(tmp_path / "a.pt", "text."), {"proj": torch.ones(2)})


def test_quantised_tensors_are_named(tmp_path):
    with warnings.catch_warnings(action="ignore"):  # they are deprecated
        quantised = torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.qint8)
        torch.save({"a": quantised}, tmp_path / "a.pt")
    assert_refused(tmp_path / "a.pt", r"a is no plain tensor \(quantised\)")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64, torch.uint16])
def test_other_tensors_in_safetensors_are_named(dtype, tmp_path):
    save_file({"a": torch.ones(2).to(dtype)}, tmp_path / "a.safetensors")
    assert_refused(tmp_path / "a.safetensors", rf"a is no plain tensor \({str(dtype)[6:]}\)")


def test_names_are_shown_on_one_line(tmp_path):
    save_file({"a\n\x1b[2J" + "b" * 999: torch.tensor(torch.nan)}, tmp_path / "a.safetensors")
    assert_refused(tmp_path / "a.safetensors", r"infinity in a\\n\\x1b\[2Jb{94}\\u2026; fetch")


def test_overflow_after_a_cast():
    weights = {"small": torch.tensor([65519.0]), "none": torch.empty(0), "steps": torch.tensor([1 << 40])}
    assert overflowing(weights, torch.float16) is None  # rounds to 65504
    assert overflowing(weights | {"low": torch.tensor([1.0, -65520.0])}, torch.float16) == "low"
    assert overflowing(weights | {"low": torch.tensor([1.0, -65520.0])}, torch.bfloat16) is None
    assert overflowing({"wide": torch.tensor([1e39], dtype=torch.float64)}, torch.float32) == "wide"


# Random damage

SMALL = {"a": torch.linspace(-1, 1, 6).view(2, 3), "visual.b": torch.ones(4).half()}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The content of a good file of each form, and a folder to damage them in."""
    folder = tmp_path_factory.mktemp("good")
    for name, write in FORMS.items():
        write(SMALL, folder / name)
    return {name: (folder / name).read_bytes() for name in FORMS}, folder


def reads_as_plain(path):
    """The tensors, or None after one sentence; nothing else may happen."""
    try:
        tensors = load_state_dict(path)
    except UserError:
        assert_refused(path, "")
        return None
    size = path.stat().st_size
    assert all(type(value) is torch.Tensor and value.nbytes <= size for value in tensors.values())
    return tensors


def write_anew(path, content):
    path.unlink(missing_ok=True)  # tensors of the run before may still be mapped
    path.write_bytes(content)


@settings(max_examples=150)
@given(name=st.sampled_from(sorted(FORMS)), share=st.floats(0, 1, exclude_max=True))
def test_a_file_that_is_cut_is_refused(good, name, share):
    contents, folder = good
    path = folder / f"cut-{name}"
    write_anew(path, contents[name][: int(len(contents[name]) * share)])
    assert reads_as_plain(path) is None


@settings(max_examples=400)
@given(
    name=st.sampled_from(sorted(FORMS)),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4),
)
def test_flipped_bytes_give_the_right_tensors_or_one_sentence(good, name, flips):
    contents, folder = good
    content = bytearray(contents[name])
    for share, bits in flips:
        content[int(len(content) * share)] ^= bits
    path = folder / f"flipped-{name}"
    write_anew(path, content)
    tensors = reads_as_plain(path)
    if tensors is not None and content[:2] == b"PK":  # the other formats have no checksums
        assert_equal(tensors, SMALL)


@settings(max_examples=400)
@given(
    scripted=st.booleans(),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4),
)
def test_flipped_bytes_behind_good_checksums(good, scripted, flips):
    contents, folder = good
    path = folder / "forged.pt"
    write_anew(path, contents["scripted.pt" if scripted else "plain.pt"])

    def flip(name, content):
        content = bytearray(content)
        for share, bits in flips:
            if name.endswith((".pkl", ".py")):
                content[int(len(content) * share)] ^= bits
        return bytes(content)

    repack(path, flip)
    reads_as_plain(path)


@settings(max_examples=300)
@given(program=st.binary(max_size=60))
def test_random_programs(good, program):
    _, folder = good
    path = folder / "program.pt"
    path.unlink(missing_ok=True)
    save_zip(b"\x80\x02" + program, path)
    reads_as_plain(path)


# Hashes


@pytest.fixture
def hashed(monkeypatch):
    """How often a file was read whole; files count as settled the moment they are written."""
    monkeypatch.setattr(state, "SETTLED_NS", -(10**18))
    read = []
    digest = state.hashlib.file_digest
    monkeypatch.setattr(state.hashlib, "file_digest", lambda *args: read.append(args) or digest(*args))
    return read


def sha256(content):
    return state.hashlib.sha256(content).hexdigest()


def test_a_hash_is_remembered(tmp_path, hashed):
    content = bytes(range(256)) * 1000
    (tmp_path / "a.bin").write_bytes(content)
    assert {content_hash(tmp_path / "a.bin") for _ in range(3)} == {sha256(content)}
    assert len(hashed) == 1
    (tmp_path / "link").symlink_to(tmp_path / "a.bin")
    assert content_hash(tmp_path / "link") == sha256(content)
    assert len(hashed) == 1


def in_place(path, content):
    path.write_bytes(content)


def renamed_over(path, content):
    other = path.with_name("other")
    other.write_bytes(content)
    other.replace(path)


def copied_over(path, content):
    other = path.with_name("other")
    other.write_bytes(content)
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    shutil.copy2(other, path)


def through_a_hard_link(path, content):
    os.link(path, path.with_name("second"))
    path.with_name("second").write_bytes(content)


@pytest.mark.parametrize("replace", [in_place, renamed_over, copied_over, through_a_hard_link])
def test_weights_replaced_by_others_of_the_same_size_and_time(replace, tmp_path, hashed):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(100_000))
    before = path.stat()
    assert content_hash(path) == sha256(bytes(100_000))
    changed = bytearray(100_000)
    changed[5000] = 1  # between the blocks of the sample: the file system's time of change tells
    time.sleep(0.02)  # its clock ticks every few milliseconds
    replace(path, changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert content_hash(path) == sha256(changed)
    assert content_hash(path) == sha256(changed)
    assert len(hashed) == 2


def test_other_weights_are_noticed_where_the_file_system_tells_nothing(tmp_path, hashed, monkeypatch):
    path = tmp_path / "a.bin"
    path.write_bytes(torch.randn(50_000).numpy().tobytes())
    always = path.stat()
    monkeypatch.setattr(state.os, "fstat", lambda handle: always)
    first = content_hash(path)
    path.write_bytes(torch.randn(50_000).numpy().tobytes())
    assert content_hash(path) == sha256(path.read_bytes()) != first


def test_a_file_just_written_is_not_remembered(tmp_path, hashed, monkeypatch):
    """A second change within one tick of the clock would not show."""
    monkeypatch.setattr(state, "SETTLED_NS", 3_000_000_000)
    (tmp_path / "a.bin").write_bytes(b"weights")
    assert content_hash(tmp_path / "a.bin") == content_hash(tmp_path / "a.bin") == sha256(b"weights")
    assert len(hashed) == 2
    later = time.time_ns() + 4_000_000_000
    monkeypatch.setattr(state.time, "time_ns", lambda: later)
    assert content_hash(tmp_path / "a.bin") == content_hash(tmp_path / "a.bin") == sha256(b"weights")
    assert len(hashed) == 3


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path, hashed, monkeypatch):
    path = tmp_path / "a.bin"
    path.write_bytes(b"weights")
    digest = state.hashlib.file_digest

    def disturbed(file, name):
        result = digest(file, name)
        path.write_bytes(b"WEIGHTS")
        return result

    with monkeypatch.context() as patch:
        patch.setattr(state.hashlib, "file_digest", disturbed)
        content_hash(path)
    assert content_hash(path) == sha256(b"WEIGHTS")


def test_a_damaged_memo_is_written_anew(tmp_path, hashed):
    from clearclip.paths import cache_dir

    path = tmp_path / "a.bin"
    path.write_bytes(b"weights")
    expected = content_hash(path)
    (memo,) = (cache_dir() / "hashes").iterdir()
    whole = memo.read_bytes()
    damages = [b"", b"\xff" * 128, whole[:64], whole[:-1], b"0" * 64 + whole[64:], whole[1:] + whole[:1], whole + b"\n"]
    for count, damage in enumerate(damages, start=2):
        memo.write_bytes(damage)
        assert content_hash(path) == expected
        assert len(hashed) == count
        assert memo.read_bytes() == whole
    memo.unlink()
    memo.mkdir()
    assert content_hash(path) == expected


def test_a_cache_that_cannot_be_written_is_no_harm(tmp_path, hashed, monkeypatch):
    (tmp_path / "a.bin").write_bytes(b"weights")
    (tmp_path / "cache").write_text("a file where the cache's folder should be")
    monkeypatch.setenv("CLEARCLIP_CACHE", str(tmp_path / "cache"))
    assert content_hash(tmp_path / "a.bin") == content_hash(tmp_path / "a.bin") == sha256(b"weights")
    assert len(hashed) == 2
