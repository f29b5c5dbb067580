"""Where files belong on the user's disk, and writing them so that none is ever seen half-written."""

import contextlib
import errno
import os
import re
import signal
import stat
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

from clearclip.errors import UserError

NAME_MAX = 255  # bytes of a file's name, on every common file system


def cache_dir() -> Path:
    """`$CLEARCLIP_CACHE`, or `clearclip` in the user's cache folder. Not created here."""
    if os.environ.get("CLEARCLIP_CACHE"):
        return Path(os.environ["CLEARCLIP_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "clearclip"


def data_root() -> Path:
    """The folder that holds the benchmarks: `$CLEARCLIP_DATA`, or `data` in the current folder."""
    return Path(os.environ.get("CLEARCLIP_DATA") or "data").expanduser()


def safe_component(text: str) -> str:
    """`text` as the name of one file or folder: never empty, `..`, hidden, too long or with a separator.

    Any character but letters, digits and `._-+=,` becomes `-`. Where more than a colon changes, a checksum of
    `text` follows, so that two names never share a folder: `safe_component("../x")` is `x-1fb8ad98`.
    """
    safe = re.sub(r"[^\w.+=,-]", "-", text)
    name = safe.encode()[:150].decode(errors="ignore").strip(".-")
    if name and name == text.replace(":", "-"):
        return name
    return f"{name}-{zlib.crc32(text.encode(errors='surrogatepass')):08x}".lstrip("-")


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise `UserError` unless a file can be written at `path`; its folders need not exist yet.

    A read-only file at `path` must not be replaced.
    """
    if "\0" in str(path):
        raise UserError(f"{str(path)!r} cannot be written, its name holds a NUL: give another path")
    target = Path(os.path.realpath(path))
    folder = next(folder for folder in target.parents if os.path.exists(folder))
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{path} cannot be written, {folder} is no folder to write to: give another path")
    if any(len(os.fsencode(part)) > NAME_MAX for part in target.parts):
        raise UserError(f"{path} cannot be written, a name in it has more than {NAME_MAX} bytes: give a shorter path")
    if os.path.exists(target) and not os.path.isfile(target):
        raise UserError(f"{path} cannot be written, it exists and is not a file: give another path")
    if _read_only(target):
        raise UserError(f"{path} is read-only: make it writable (chmod u+w) or give another path")


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise `OSError` unless `path` is a file that can be opened at once: a pipe would wait for its writer for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "no regular file", str(path))


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path` in one step.

    The new file takes over the old one's mode and, where permitted, its owner; a symbolic link is followed. Nothing is
    left behind when writing fails (say on a full disk) or SIGTERM arrives. Raises `OSError`, for a read-only file
    `PermissionError`.
    """
    target = Path(os.path.realpath(path))
    if _read_only(target):
        raise PermissionError(errno.EACCES, "the file is read-only", str(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    with sigterm_raises():
        handle, name = tempfile.mkstemp(prefix=f".{target.stem[:32]}.", suffix=target.suffix[:32], dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            _inherit(temporary, target)
            _flush(temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], timeout: float = -1) -> Iterator[None]:
    """Hold a lock among processes, by a file that stays; -1 seconds wait for ever. Its folders are made.

    Raises `OSError` where the file cannot be opened to write, and `filelock.Timeout`.
    """
    from filelock import FileLock

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o644))  # where that fails, FileLock may try until the timeout
    with FileLock(path, timeout=timeout):
        yield


def _read_only(path: Path) -> bool:
    """Whether the user made the file read-only; root may write to such files, and should not."""
    return os.path.isfile(path) and not (os.access(path, os.W_OK) and path.stat().st_mode & 0o222)


def _inherit(temporary: Path, target: Path) -> None:
    """Give `temporary` the mode and owner of `target`, or those of a new file: mkstemp's 0600 would hide it."""
    try:
        old = target.stat()
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        return
    if hasattr(os, "chown") and (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
        for user, group in ((-1, old.st_gid), (old.st_uid, -1)):
            with contextlib.suppress(PermissionError):
                os.chown(temporary, user, group)
    temporary.chmod(stat.S_IMODE(old.st_mode))  # last, for chown drops some of its bits


def _flush(path: Path) -> None:
    """Get the contents onto the disk before the name: otherwise a power cut could leave an empty file."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that `finally` runs. Leaves alone a program that handles it by itself."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
