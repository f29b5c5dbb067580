"""Tensors in files, and what a file says of itself. No code of a file is ever run."""

import contextlib
import hashlib
import re
import warnings
import zipfile
from pathlib import Path

from clearclip.errors import UserError
from clearclip.paths import atomic_write, cache_dir


def _unreadable(path: Path) -> UserError:
    return UserError(
        f"{path} cannot be read as weights: it is damaged, or no file of tensors alone; fetch it again, or convert it "
        "to .safetensors"
    )


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def marked_activation(path: Path) -> str | None:
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        try:
            with safe_open(path, framework="pt") as file:
                return (file.metadata() or {}).get("activation")
        except Exception as error:
            raise _unreadable(path) from error
    if zipfile.is_zipfile(path):
        return "quick_gelu" if _is_torchscript(path) else None  # only OpenAI ships TorchScript archives
    with path.open("rb") as file:
        if file.read(1) != b"\x80":  # a pickle's, which PyTorch's older files are
            raise _unreadable(path)
    return None


def load_state_dict(path: Path, prefix: str = "") -> dict:
    """Tensors of a checkpoint whose names start with `prefix`, the prefix removed; never unpickles code.

    Reads .safetensors, PyTorch files (weights_only, with or without the wrappers `state_dict`, `model` and
    `module.`) and OpenAI's TorchScript archives. Raises UserError naming a damaged file.
    """
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
                return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
        if _is_torchscript(path):
            with warnings.catch_warnings(action="ignore", category=FutureWarning):  # TorchScript is deprecated
                state = torch.jit.load(path, map_location="cpu").state_dict()
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        for wrapper in ("state_dict", "model"):
            if isinstance(state.get(wrapper), dict):
                state = state[wrapper]
    except Exception as error:
        raise _unreadable(path) from error
    state = {str(key).removeprefix("module."): value for key, value in state.items() if torch.is_tensor(value)}
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def content_hash(path: Path) -> str:
    """SHA-256 of a file, remembered under its size and time so that a warm start need not read it again."""
    status = path.stat()
    identity = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"
    memo = cache_dir() / "hashes" / hashlib.sha256(identity.encode()).hexdigest()
    known = memo.read_text(errors="replace") if memo.is_file() else ""
    if re.fullmatch("[0-9a-f]{64}", known):
        return known
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with contextlib.suppress(OSError), atomic_write(memo) as temporary:  # a cache that cannot be written is no harm
        temporary.write_text(digest)
    return digest
