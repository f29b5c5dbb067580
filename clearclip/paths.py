"""Where things lie on the user's disk, and writing files that are never seen half-written."""

import contextlib
import os
import tempfile
from pathlib import Path

from clearclip.errors import UserError


def cache_dir() -> Path:
    """`$CLEARCLIP_CACHE`, or `clearclip` in the user's cache folder. Not created here."""
    if os.environ.get("CLEARCLIP_CACHE"):
        return Path(os.environ["CLEARCLIP_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "clearclip"


def data_root() -> Path:
    """The folder that holds the benchmarks: `$CLEARCLIP_DATA`, or `data` in the current folder."""
    return Path(os.environ.get("CLEARCLIP_DATA") or "data").expanduser()


def check_writable(path) -> None:
    """Raise `UserError` where no file can be made at `path`; folders that do not exist yet can be."""
    folder = next(folder for folder in Path(path).absolute().parents if os.path.exists(folder))
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{path} cannot be written, {folder} is no folder to write to: give another path")


@contextlib.contextmanager
def atomic_write(path):
    """Yield a temporary path in the folder of `path`; on success it replaces `path` in one step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp gives 0600, which would hide shared results
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
