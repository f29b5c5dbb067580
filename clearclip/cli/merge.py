"""Merge what several jobs or machines have counted: `clearclip merge DIR… --into work_dirs/records`."""

import argparse
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from clearclip.errors import UserError, program

if TYPE_CHECKING:
    from clearclip.evaluation.records import Run

MERGED = "merged.sqlite"
PART = re.compile(r"(\d+)-of-(\d+)\.sqlite")


def parse_arguments(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog, description="Merge the records of shards or machines, and say what they hold and what is missing."
    )
    parser.add_argument("sources", nargs="+", metavar="DIR", help="folders of records, or single .sqlite files")
    parser.add_argument(
        "--into", metavar="DIR", default="work_dirs/records",
        help=f"the folder whose {MERGED} they are added to (default: work_dirs/records)",
    )  # fmt: skip
    return parser.parse_args(argv)


def record_files(sources: Iterable[str | Path]) -> list[Path]:
    """The files of records that folders hold, at any depth, and those that are named, each once.

    Raises UserError for what is not there and for a folder without records.
    """
    found: dict[Path, Path] = {}
    for source in map(Path, sources):
        paths = [source] if source.is_file() else sorted(source.rglob("*.sqlite"))
        if not paths:
            what = "holds no records" if source.is_dir() else "does not exist"
            raise UserError(f"{source} {what}; give a folder that `clearclip eval --records` wrote")
        found |= {path.resolve(): path for path in paths}
    return list(found.values())


def check_sound(files: Iterable[Path]) -> None:
    """Raise UserError, with what is wrong, unless every record of all files is whole and possible."""
    from clearclip.evaluation.records import Records

    for path in files:
        with Records.open(path, readonly=True) as records:
            faults = records.verify()
        if faults:
            more = f", and {len(faults) - 1} more faults" if len(faults) > 1 else ""
            raise UserError(f"{faults[0]}{more}: nothing is merged; run the evaluation that wrote it again")


def missing_parts(files: Iterable[Path]) -> list[str]:
    """The shards, such as "2/4", of which others are among these files."""
    seen: dict[int, set[int]] = defaultdict(set)
    for path in files:
        if match := PART.fullmatch(path.name):
            seen[int(match[2])].add(int(match[1]))
    return [
        f"{index}/{count}"
        for count, indices in sorted(seen.items())
        for index in range(1, count + 1)
        if index not in indices
    ]


def describe(run: "Run") -> tuple[list[str], str | None]:
    """The row of a run, and a sentence where images are missing."""
    from clearclip.evaluation.results.recorded import method, whole
    from clearclip.evaluation.statistics import bootstrap, format_score

    identity, count = run.identity, whole(run)
    images = len(run.done())
    score = format_score(bootstrap(run.areas()).mIoU, 2) if images else ""
    counted = str(images) if count is None else f"{images} of {count}"
    weights = identity.get("weights")
    weights = str(weights.get("backbone", "")) if isinstance(weights, dict) else ""
    name = method(run)
    row = [str(identity.get("benchmark", "")), name, weights, str(identity.get("precision", "")), run.key[:8], counted]
    lacking = None
    if count is not None and images < count:
        lacking = f"{row[0]}, {name} ({run.key[:8]}): {count - images} of {count} images are not counted"
    return [*row, score], lacking


def show(runs: Iterable["Run"]) -> list[str]:
    """Print a table of runs. Returns what they lack."""
    described = [describe(run) for run in runs]
    lines = [["benchmark", "method", "backbone", "precision", "run", "images", "mIoU"]]
    lines += sorted(row for row, _ in described)
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join(map(str.ljust, line, widths)).rstrip())
    return [lacking for _, lacking in described if lacking]


@program
def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    arguments = parse_arguments(argv, prog)
    files = record_files(arguments.sources)

    from clearclip.evaluation.records import Records, merge

    check_sound(files)
    target = Path(arguments.into) / MERGED
    new = merge(target, files)
    print(f"{len(files)} files, {new} images of runs that {target} did not have\n")
    with Records.open(target, readonly=True) as records:
        lacking = show(records.runs())
    for part in missing_parts(files):
        print(f"missing: part {part}, of which there is no file")
    for sentence in lacking:
        print(f"missing: {sentence}")
    print(f"\nthe command that counted them, without --shard and with --records {arguments.into}, gives the result")
