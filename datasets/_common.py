"""What the converters share: options, label maps in and out, and a parallel loop that outlives bad files."""

import argparse
import functools
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

# `python datasets/cvt_….py` puts only datasets/ on the path; the scripts import this module before clearclip.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clearclip.errors import UserError
from clearclip.paths import atomic_write


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def arguments(description: str, splits: list[str]) -> argparse.ArgumentParser:
    """A parser with the options that every converter has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--splits", nargs="+", choices=["train", "val"], default=splits, help=f"default: {' '.join(splits)}"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what exists already")
    parser.add_argument(
        "--workers",
        type=positive,
        default=min(os.cpu_count() or 1, 16),
        help="processes (default: %(default)s)",
    )
    return parser


def check_targets(targets: list[Path], overwrite: bool) -> None:
    """Refuse to replace what exists, before anything is written."""
    existing = [target for target in targets if target.exists()]
    if existing and not overwrite:
        raise UserError(
            f"{len(existing)} of the {len(targets)} label maps exist already, the first is {existing[0]}: "
            "pass --overwrite to replace them"
        )


def read_labels(path: Path, table: np.ndarray) -> np.ndarray:
    """Read the 8-bit PNG `path` and look its ids up in `table` [256], where -1 means: no such id."""
    try:
        with Image.open(path) as image:
            mode, ids = image.mode, np.array(image)  # H W
    except Exception as error:  # what a damaged file raises has no common base in Pillow
        raise UserError(f"cannot read {path} ({error})") from error
    if mode not in ("L", "P"):
        raise UserError(f"{path} is not a map of 8-bit labels but an image of mode {mode}")
    labels = table[ids]
    if labels.min() < 0:
        raise UserError(f"{path} has the id {ids[labels < 0][0]}, which is none of this data set's")
    return labels


def write_png(path: Path, labels: np.ndarray, palette: list[int] | None = None) -> None:
    """Write labels (uint8 or uint16) [H,W] as a PNG, with colours for viewers if there is a palette."""
    image = Image.fromarray(labels)
    if palette is not None:
        image.putpalette(palette)
    with atomic_write(path) as temporary:
        image.save(temporary, "PNG")


def convert_png(source: Path, target: Path, table: np.ndarray) -> None:
    write_png(target, read_labels(source, table).astype(np.uint8))


def attempt(convert, job: tuple) -> str | None:
    try:
        convert(*job)
    except UserError as error:
        return str(error)
    except OSError as error:  # a full disk, a folder that may not be written
        return f"cannot convert {job[0]} ({error})"


def convert_all(convert, jobs: list[tuple], workers: int) -> list[str]:
    """Call `convert(*job)` on every job, in parallel; return what the failed ones had to say."""
    # Ctrl-C reaches every process of the group; only the parent should answer it.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    try:
        with ProcessPoolExecutor(workers, initializer=signal.signal, initargs=ignore) as executor:
            messages = executor.map(functools.partial(attempt, convert), jobs, chunksize=8)
            return [message for message in tqdm(messages, total=len(jobs), unit="image") if message]
    except BrokenProcessPool:
        raise UserError("a worker process was killed, for want of memory perhaps: lower --workers") from None


def report(failures: list[str], total: int, folder: Path) -> None:
    """The last line of a converter: where the label maps are, or which ones are not there."""
    if failures:
        more = [f"and {len(failures) - 10} more"] if len(failures) > 10 else []
        named = "; ".join(failures[:10] + more)
        raise UserError(f"{len(failures)} of {total} files were not converted, all others were: {named}")
    print(f"{total} label maps written to {folder}")
