"""What the converters share: options, files in and out, and a parallel loop that outlives bad files."""

import argparse
import errno
import functools
import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

# `python datasets/cvt_….py` puts only datasets/ on the path; the scripts import this module before clearclip.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clearclip.errors import UserError
from clearclip.paths import atomic_write, check_writable, data_root

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class OutOfResources(UserError):
    """The disk or the memory is full: the files still to come would fail as well."""


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def common_arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every converter has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--overwrite", action="store_true", help="replace what exists already; otherwise it is kept")
    parser.add_argument(
        "--workers",
        type=positive,
        default=min(os.cpu_count() or 1, 16),
        help="processes (default: %(default)s)",
    )
    return parser


def arguments(description: str, splits: list[str]) -> argparse.ArgumentParser:
    """`common_arguments` and --splits, with `splits` as its default."""
    parser = common_arguments(description)
    parser.add_argument(
        "--splits", nargs="+", choices=["train", "val"], default=splits, help=f"default: {' '.join(splits)}"
    )
    return parser


def find_files(folder: Path, suffix: str, pattern: str = "*") -> list[Path]:
    """What matches the glob `pattern` in `folder` and ends in `suffix`, in upper or lower case, sorted.

    Hidden files and folders are left out: macOS puts a `._name.png` beside each `name.png` of its archives.
    """
    paths = (path for path in folder.glob(pattern) if path.name.lower().endswith(suffix.lower()))
    return sorted(path for path in paths if not any(part[0] == "." for part in path.relative_to(folder).parts))


def read_lines(path: Path, what: str) -> list[tuple[int, str]]:
    """Line number and text of each line of a text file that is not blank. `what` names the file in messages."""
    if not path.is_file():
        kind = "is not a file" if path.exists() else "is missing"
        raise UserError(f"{path} {kind}: {what}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): {what}") from None
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def check_file(path: Path) -> None:
    """Raise UserError for what is no ordinary file: reading a named pipe would wait for ever."""
    if not path.is_file():
        kind = "a folder, a pipe or a device, not a file" if path.exists() else "missing"
        raise UserError(f"{path} is {kind}")


def read_image(path: Path) -> tuple[str, np.ndarray]:
    """Pillow's mode and the pixels, [H, W] or [H, W, channels], of an image file."""
    check_file(path)
    try:
        with Image.open(path) as image:
            return image.mode, np.array(image)
    except MemoryError:
        raise
    except Exception as error:  # what a damaged file raises has no common base in Pillow
        raise UserError(f"cannot read {path} ({error})") from error


def read_ids(path: Path) -> np.ndarray:
    """The ids [H, W], uint8, of an 8-bit label map."""
    mode, ids = read_image(path)
    if mode not in ("L", "P"):
        colour = "colour " if ids.ndim == 3 else ""
        raise UserError(
            f"{path} is not a map of 8-bit labels but a {colour}image of mode {mode}: give the data set's own label map"
        )
    return ids


def read_labels(path: Path, table: np.ndarray) -> np.ndarray:
    """Read the 8-bit PNG `path` and look its ids up in `table` [256], where -1 means: no such id."""
    ids = read_ids(path)
    labels = table[ids]
    if labels.min() < 0:
        raise UserError(f"{path} has the id {ids[labels < 0][0]}, which is none of this data set's")
    return labels


def write_file(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all. Raises OutOfResources where the disk has no room."""
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> UserError:
    if error.errno in NO_ROOM:
        return OutOfResources(f"cannot write {path} ({error.strerror}): make room and run again, it goes on from there")
    return UserError(f"cannot write {path} ({error.strerror or error})")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    write_file(path, "".join(f"{line}\n" for line in lines).encode())


def write_image(path: Path, labels: np.ndarray, form: str = "PNG", palette: list[int] | None = None) -> None:
    """Write labels (uint8 or uint16) [H, W] as a PNG or TIFF, with colours for viewers if there is a palette."""
    image = Image.fromarray(labels)
    if palette is not None:
        image.putpalette(palette)
    encoded = io.BytesIO()  # Pillow, writing to a full disk itself, does not say that it is full
    image.save(encoded, form)
    write_file(path, encoded.getvalue())


def convert_png(source: Path, target: Path, table: np.ndarray) -> None:
    write_image(target, read_labels(source, table).astype(np.uint8))


def place_image(source: Path, target: Path, copy: bool) -> None:
    """Link `target` to `source`, or copy it. An image that is there is left, but a copy replaces a link."""
    if target.exists() and not (copy and target.is_symlink()):
        return
    check_file(source)
    if copy:
        if target.is_symlink():  # which writing would follow, to the source itself
            target.unlink()
        try:
            content = source.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {source} ({error.strerror})") from error
        write_file(target, content)
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # a link that leads nowhere
        # Relative, so that the data folder can be moved as a whole.
        target.symlink_to(os.path.relpath(source.resolve(), target.parent.resolve()))
    except OSError as error:
        raise UserError(f"cannot link {target} ({error}): pass --copy-images") from error


def convert_chosen(
    description: str,
    datasets: Mapping[str, tuple[Callable[[Path], Iterable[tuple]], Callable, str]],
    what: str,
    labels: str | None = None,
) -> None:
    """The program of a converter that knows several data sets.

    `datasets` has by name what finds the jobs, (source, target, …), in a folder, what does one of them, and the folder
    in `$CLEARCLIP_DATA`. `what` names the sources in messages; `labels` is the folder of the targets, by default that
    of the first.
    """
    parser = common_arguments(description)
    parser.add_argument("dataset", choices=datasets)
    parser.add_argument("root", type=Path, nargs="?", help="default: the data set's folder in $CLEARCLIP_DATA")
    args = parser.parse_args()
    find, convert, folder = datasets[args.dataset]
    root = args.root or data_root() / folder
    if not root.is_dir():
        raise UserError(f"{root} is no folder: unpack the data set there (datasets/README.md says where to get it)")
    jobs = list(find(root))
    if not jobs:
        raise UserError(f"no {what} in {root} where `-h` says: unpack the data set there")
    kept = existing(jobs, args.overwrite)
    failures = convert_all(convert, [job for job in jobs if job[1] not in kept], args.workers)
    report(failures, len(jobs), len(kept), root / labels if labels else jobs[0][1].parent)


def existing(jobs: list[tuple], overwrite: bool) -> set[Path]:
    """The targets of `jobs`, (source, target, …), that are there and are to be kept.

    Raises UserError where two sources have one target and where a target cannot be written.
    """
    sources = {}
    for source, target, *_ in jobs:
        if target in sources:
            raise UserError(f"{sources[target]} and {source} would both become {target}: remove or rename one")
        sources[target] = source
    kept = set() if overwrite else {target for target in sources if target.exists()}
    for folder in {target.parent for target in sources.keys() - kept}:
        check_writable(folder / "label map")
    return kept


def run_jobs(function: Callable, jobs: list[tuple], workers: int) -> list:
    """`function(*job)` for every job, in parallel, in order.

    Raises UserError where a worker process is killed, and what `function` raises; jobs not yet begun are dropped.
    """
    if not jobs:
        return []
    # Ctrl-C reaches every process of the group; only the parent should answer it.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    try:
        with ProcessPoolExecutor(workers, initializer=signal.signal, initargs=ignore) as executor:
            results = executor.map(functools.partial(_call, function), jobs, chunksize=8)
            return list(tqdm(results, total=len(jobs), unit="image"))
    except BrokenProcessPool:
        raise OutOfResources(
            "a worker process was killed, for want of memory perhaps: lower --workers and run again, it goes on from "
            "there"
        ) from None
    except MemoryError:
        raise OutOfResources("out of memory: lower --workers and run again, it goes on from there") from None


def _call(function: Callable, job: tuple):
    return function(*job)


def convert_all(convert: Callable, jobs: list[tuple], workers: int) -> list[str]:
    """Call `convert(*job)` on every job, (source, target, …), in parallel; return what the failed ones had to say.

    Raises OutOfResources where it makes no sense to go on; nothing half-written is left behind.
    """
    try:
        return [message for message in run_jobs(functools.partial(_attempt, convert), jobs, workers) if message]
    except OutOfResources:
        _remove_temporaries({target for _, target, *_ in jobs})
        raise


def _attempt(convert: Callable, *job) -> str | None:
    try:
        convert(*job)
    except OutOfResources:
        raise
    except UserError as error:
        return str(error)


def _remove_temporaries(targets: set[Path]) -> None:
    """Remove what `atomic_write` left of `targets` in a process that was killed."""
    for folder in {target.parent for target in targets}:
        for path in folder.glob(".*.????????.*"):
            stem = path.name[1:].rsplit(".", 2)[0]
            if folder / f"{stem}{path.suffix}" in targets:
                path.unlink(missing_ok=True)


def report(failures: list[str], total: int, kept: int, folder: Path) -> None:
    """The last line of a converter: where the label maps are, or which ones are not there."""
    if failures:
        more = [f"and {len(failures) - 10} more"] if len(failures) > 10 else []
        named = "; ".join(failures[:10] + more)
        raise UserError(f"{len(failures)} of {total} files were not converted, all others were: {named}")
    there = f"; {kept} were there and are kept, --overwrite replaces them" if kept else ""
    print(f"{total - kept} label maps written to {folder}{there}")
