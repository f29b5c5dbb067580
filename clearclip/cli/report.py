"""One page on runs, to look at and to send: `clearclip report work_dirs -o report.html`."""

import argparse
import sys
from pathlib import Path

from clearclip.cli.options import add_modules
from clearclip.errors import UserError, program


def parse_arguments(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog, description="Write one page of HTML on runs: scores, intervals, classes, confusions, images."
    )
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", default=["work_dirs"],
        help="work dirs, result.json files, folders or files of records (default: work_dirs)",
    )  # fmt: skip
    parser.add_argument("-o", "--output", metavar="FILE", default="report.html", help="default: report.html")
    parser.add_argument(
        "--records", metavar="DIR", default="work_dirs/records",
        help="where the records of results lie, besides below RUN (default: work_dirs/records)",
    )  # fmt: skip
    parser.add_argument(
        "--against", metavar="METHOD", help="what the others are compared with (default: ClearCLIP, or the first)"
    )
    parser.add_argument(
        "--pictures", metavar="N", type=natural, default=3,
        help="worst and best images shown of each data set, segmented once more (default: 3; 0 is quickest)",
    )  # fmt: skip
    parser.add_argument("--title", default="Segmentation results", help="what stands above the page")
    add_modules(parser)
    return parser.parse_args(argv)


def natural(text: str) -> int:
    """A whole number from 0 on, as the type of an option."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, 0 or more, not {text!r}")
    return int(text)


def check_output(path: str) -> None:
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise UserError(f"-o {path} is no name for a page: let it end in .html")


@program
def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    arguments = parse_arguments(argv, prog)
    check_output(arguments.output)

    from clearclip.evaluation.report import find, write_report
    from clearclip.registry import import_modules

    sources = find(arguments.runs, arguments.records)
    import_modules(arguments.modules)
    report = write_report(
        sources, arguments.output, arguments.against, arguments.pictures, arguments.title,
        say=lambda line: print(line, file=sys.stderr),
    )  # fmt: skip
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    runs = sum(len(one.entries) for one in report.data_sets if not one.is_average)
    size = Path(arguments.output).stat().st_size
    print(f"{runs} runs in {arguments.output}, {size / 1e6:.1f} MB")
