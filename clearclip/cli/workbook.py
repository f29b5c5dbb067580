"""Make results.xlsx anew from the result.json of each run: `clearclip workbook work_dirs -o results.xlsx`."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from clearclip.errors import UserError, printable, program

if TYPE_CHECKING:
    from clearclip.evaluation.results import Result


def parse_arguments(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog, description="Make the workbook anew from the result.json of each run.")
    parser.add_argument("folders", nargs="*", metavar="DIR", default=["work_dirs"], help="default: work_dirs")
    parser.add_argument("-o", "--output", metavar="FILE", default="results.xlsx", help="default: results.xlsx")
    return parser.parse_args(argv)


def find_results(folders: Iterable[str | Path]) -> list[Path]:
    """Every result.json below some folders, each once. Raises UserError where a folder is missing or has none."""
    found: dict[Path, Path] = {}
    for folder in map(Path, folders):
        paths = [folder] if folder.is_file() else sorted(folder.rglob("result.json"))
        if not paths:
            raise UserError(f"there is no result.json below {folder}: give the folder that an evaluation wrote to")
        found |= {path.resolve(): path for path in paths}
    return list(found.values())


def read_all(paths: Iterable[Path]) -> tuple[list["Result"], list[UserError]]:
    """The results that can be read, and what is wrong with the others."""
    from clearclip.evaluation.results import read_result

    results, errors = [], []
    for path in paths:
        try:
            results.append(read_result(path))
        except UserError as error:
            errors.append(error)
    return results, errors


@program
def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    arguments = parse_arguments(argv, prog)
    paths = find_results(arguments.folders)

    from clearclip.evaluation.results import as_text, rebuild, table

    results, errors = read_all(paths)
    if results:
        rebuild(results, arguments.output)
        print(as_text(table(results)))
        print(f"{len(results)} runs in {arguments.output}")
    for error in errors:
        print(f"error: {printable(str(error))}", file=sys.stderr)
    if errors:
        raise SystemExit(2)
