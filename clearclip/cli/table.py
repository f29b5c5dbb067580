"""The benchmark table: every method × backbone × data set, in as few passes over the data as they need."""

import argparse
import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from clearclip.cli.options import add_evaluation, model_settings
from clearclip.cli.reporting import add_sharing, check_outputs, one_line, own_device, score, shares, stoppable
from clearclip.config import benchmarks, find_config, parse_options, protocols
from clearclip.errors import UserError, program
from clearclip.paths import atomic_write, check_writable
from clearclip.registry import split

if TYPE_CHECKING:
    from clearclip.evaluation.evaluate import Job
    from clearclip.evaluation.results import Result
    from clearclip.evaluation.run import Run


def parse_arguments(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog, description="Evaluate methods on benchmarks and print one table.")
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD", default=["CLIP", "MaskCLIP", "SCLIP", "NACLIP", "ClearCLIP"],
        help="as in ClearCLIP:attention=kk,residual=1 or NACLIP+PAMR",
    )  # fmt: skip
    parser.add_argument(
        "--grid",
        metavar="METHOD",
        help='all combinations of options, as in "ClearCLIP:attention=qq|kk,residual=0|1", and a table of them',
    )
    parser.add_argument("--backbones", nargs="+", metavar="BACKBONE", default=["ViT-B-16"], help="or arch:tag")
    parser.add_argument("--pretrained", default="openai", help="weights of backbones that name no tag")
    parser.add_argument(
        "--datasets", nargs="+", metavar="CONFIG", help="voc20, sclip/voc20 or config files (default: all eight)"
    )
    parser.add_argument(
        "--protocol", default="clearclip", help="whose voc20 it is: clearclip, sclip, naclip, …, or all"
    )
    add_evaluation(parser)
    add_sharing(parser)
    parser.add_argument("--markdown", metavar="FILE", help="also write the table as Markdown")
    return parser.parse_args(argv)


def config_paths(datasets: list[str], protocol: str) -> list[Path]:
    """The configs of data sets under a protocol, or under each that has the data set for "all"."""
    if protocol != "all":
        return [find_config(dataset, protocol) for dataset in datasets]
    named = [(dataset, [name for name in protocols() if dataset in benchmarks(name)]) for dataset in datasets]
    return [find_config(dataset, name) for dataset, names in named for name in names or ["clearclip"]]


def plan(arguments: argparse.Namespace) -> tuple[list["Run"], list[UserError]]:
    """All runs, and what says which data sets are missing.

    Raises UserError for a mistake in any of them: it should not wait for the runs before it.
    """
    from clearclip.evaluation.datasets import check_dataset, left_aside
    from clearclip.evaluation.results import BENCHMARKS
    from clearclip.evaluation.run import default_work_dir, load_config
    from clearclip.spec import Spec

    overrides = parse_options(arguments.cfg_options)
    methods = [str(Spec.parse(method)) for method in arguments.methods]
    present, missing = [], []
    for path in config_paths(arguments.datasets or list(BENCHMARKS), arguments.protocol):
        run = load_config(path, overrides=overrides, limit=arguments.limit)
        try:
            note = left_aside(check_dataset(run))
        except UserError as error:
            missing.append(error)
            continue
        present.append(run)
        if note:
            print(note, file=sys.stderr)
    runs = []
    settings = model_settings(arguments) | {"device": own_device(arguments)}
    for backbone in arguments.backbones:
        for base in present:
            for method in methods:
                model = dict(method=method, backbone=backbone, pretrained=arguments.pretrained)
                run = load_config(base.path, model | settings, overrides, arguments.limit)
                check_writable(default_work_dir(run) / "result.json")
                runs.append(run)
    return runs, missing


def evaluate_runs(job: "Job", workbook: str) -> tuple[list["Result"], list[str]]:
    """The results of all runs, appended to the workbook one by one, and the names of those that failed."""
    from clearclip.evaluation.evaluate import evaluate_all, work_dir
    from clearclip.evaluation.results import append_results

    found, failed = [], []

    def report(error: Exception, run: "Run") -> None:
        failed.append(f"{run.config.benchmark.name}: {run.method}, {run.config.model.backbone}")
        print(f"error: {failed[-1]}: {one_line(error)}", file=sys.stderr)

    with stoppable():
        for outcome in evaluate_all(job):
            if outcome.error:
                report(outcome.error, outcome.run)
            if not outcome.result:
                continue
            found.append(outcome.result)
            print(score(outcome.run, outcome.result), file=sys.stderr)
            try:
                append_results([outcome.result], workbook, saved_at=f"{work_dir(job, outcome.run)}/result.json")
            except UserError as error:
                report(error, outcome.run)
    return found, failed


@program
def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    arguments = parse_arguments(argv, prog)
    parse_options(arguments.cfg_options)
    if arguments.grid:
        arguments.methods = grid(arguments.grid)
    config_paths(arguments.datasets or [], arguments.protocol)  # what needs no PyTorch is found at once

    from clearclip.evaluation.evaluate import Job
    from clearclip.evaluation.results import as_markdown, as_text, table
    from clearclip.registry import import_modules

    share, awaited, reports = shares(arguments)
    import_modules(arguments.modules)
    check_outputs(arguments)
    if arguments.markdown:
        check_writable(arguments.markdown)
    runs, missing = plan(arguments)
    for error in missing:
        print(f"missing: {error}", file=sys.stderr)
    job = Job(runs, (), Path(arguments.records), share, reports, awaited, arguments.fresh)
    found, failed = evaluate_runs(job, arguments.results) if runs else ([], [])
    if found:
        rows = table(found)
        print(as_text(rows))
        if arguments.grid:
            print(as_grid(arguments.grid, found))
        print(f"results in {arguments.results}")
        if arguments.markdown:
            with atomic_write(arguments.markdown) as temporary:
                temporary.write_text(as_markdown(rows) + "\n", encoding="utf-8")
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    if failed or not runs or (missing and arguments.datasets):
        raise SystemExit(2)


def grid(text: str) -> list[str]:
    """Every cell of a grid: "A:x=1|2,y=3|4" is "A:x=1,y=3", "A:x=1,y=4", "A:x=2,y=3" and "A:x=2,y=4".

    Raises UserError for a grid of nothing.
    """
    name, colon, rest = text.partition(":")
    if not colon or "|" not in rest:
        raise UserError(f"--grid {text!r} must give options several values, such as ClearCLIP:attention=qq|kk")
    return [f"{name}:{','.join(cell)}" for cell in product(*axes(rest).values())]


def axes(options: str) -> dict[str, list[str]]:
    """The options of a grid, each with the written forms of its values: {"x": ["x=1", "x=2"]}."""
    written = {}
    for option in split(options, ","):
        key, _, values = option.partition("=")
        written[key.strip()] = [f"{key.strip()}={value.strip()}" for value in values.split("|")]
    return written


def as_grid(text: str, results: list["Result"]) -> str:
    """mIoU of a grid's cells, for each data set: the first option down, the others across."""
    from clearclip.spec import Spec

    name, _, rest = text.partition(":")
    first, *others = axes(rest).values()
    scores = {(result["dataset"], result["method"]): result["mIoU"] for result in results}
    blocks = []
    for dataset in dict.fromkeys(result["dataset"] for result in results):
        lines = [[dataset, *(" ".join(cell) for cell in product(*others))]]
        for value in first:
            methods = [str(Spec.parse(f"{name}:{','.join((value, *cell))}")) for cell in product(*others)]
            found = [scores.get((dataset, method)) for method in methods]
            lines.append([value, *("" if score is None else f"{score:.2f}" for score in found)])
        widths = [max(map(len, column)) for column in zip(*lines)]
        blocks.append("\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines))
    return "\n\n".join(blocks)
