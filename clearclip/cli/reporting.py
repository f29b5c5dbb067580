"""What `clearclip eval` and `clearclip table` share: whose images are counted where, and how it ends."""

import argparse
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from clearclip.errors import UserError, one_line

if TYPE_CHECKING:
    from clearclip.evaluation.ranks import Ranks
    from clearclip.evaluation.results import Result
    from clearclip.evaluation.run import Run
    from clearclip.evaluation.shards import Share

PARENT = os.getppid()  # as early as can be: a launcher that dies before is not noticed
TOLD_SECONDS = 20  # in which rank 0 should have said what is wrong


def add_sharing(parser: argparse.ArgumentParser) -> None:
    """The options that say which images a process counts, and what it makes of what is counted already."""
    parser.add_argument("--shard", metavar="I/N", help="count the I-th of N equal parts of the images, such as 3/16")
    parser.add_argument("--fresh", action="store_true", help="count again what is counted already")
    parser.add_argument(
        "--records", metavar="DIR", default="work_dirs/records", help="what is counted (default: work_dirs/records)"
    )
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def shares(arguments: argparse.Namespace) -> tuple["Share", "Share | None", bool]:
    """The part of the images that is this process's, the part that it waits for, and whether it reports."""
    from clearclip.evaluation.shards import Share

    shard = Share.parse(arguments.shard) if arguments.shard else Share()
    rank = Share.of_launcher(arguments.launcher)
    return rank.within(shard), shard if rank.count > 1 and rank.index == 0 else None, rank.index == 0


def launched(arguments: argparse.Namespace) -> "AbstractContextManager[Ranks | None]":
    """The processes that a launcher started together; nothing without one."""
    if arguments.launcher == "none":
        return nullcontext()
    from clearclip.evaluation.ranks import Ranks
    from clearclip.evaluation.shards import Share

    shard, rank = Share.parse(arguments.shard) if arguments.shard else Share(), Share.of_launcher(arguments.launcher)
    if rank.index:  # rank 0 says the same of names and weights
        for name in ("clearclip.text", "clearclip.weights"):
            logging.getLogger(name).setLevel(logging.ERROR)
    return Ranks(Path(arguments.records), shard, rank, PARENT)


@contextmanager
def said_once(arguments: argparse.Namespace) -> Iterator[None]:
    """Leave errors to rank 0, which finds the same or is told: its end stops this process while that waits."""
    try:
        yield
    except UserError:
        if arguments.launcher != "none" and not shares(arguments)[2]:
            time.sleep(TOLD_SECONDS)
        raise


def own_device(arguments: argparse.Namespace) -> str | None:
    """The device of this process: of those that a launcher started on one machine, each has a GPU of its own."""
    if arguments.launcher == "none" or arguments.device not in (None, "auto", "cuda"):
        return arguments.device
    import torch

    if not torch.cuda.is_available():
        return arguments.device
    local = next((os.environ[name] for name in ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK")
                  if name in os.environ), "0")  # fmt: skip
    return f"cuda:{int(local) % torch.cuda.device_count()}"


def score(run: "Run", result: "Result") -> str:
    """A result in a line."""
    half = result.get("interval")
    interval = f" ± {half:.2f}" if half is not None and math.isfinite(half) else ""
    title = f"{run.config.benchmark.name}, {run.method}"
    return f"{title}: mIoU {result['mIoU']:.2f}{interval}, {result['images']} images"


@contextmanager
def stoppable(reports: bool = True) -> Iterator[None]:
    """End the program with a signal's status where one asked to stop; who `reports` says how to go on."""
    from clearclip.evaluation.passes import Interrupted

    try:
        yield
    except Interrupted as error:
        name = signal.Signals(error.number).name
        if reports:
            print(f"stopped by {name}: what was counted is kept; the same command goes on from there", file=sys.stderr)
        raise SystemExit(128 + error.number) from None


def check_outputs(arguments: argparse.Namespace) -> None:
    """Raise UserError for places that cannot be written, before anything slow is done."""
    from clearclip.evaluation.results import check_workbook
    from clearclip.paths import check_writable

    check_workbook(arguments.results)
    check_writable(Path(arguments.records) / "1-of-1.sqlite")


def with_kind(error: Exception) -> str:
    """An error as a sentence, with its kind where it is not one of ours."""
    text = one_line(error)
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
