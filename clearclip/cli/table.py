"""The benchmark table: every method × backbone × data set, in as few passes over the data as they need."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from clearclip.cli.grid import Grid
from clearclip.cli.options import add_evaluation, model_settings
from clearclip.cli.reporting import (
    add_sharing,
    check_outputs,
    launched,
    own_device,
    said_once,
    score,
    shares,
    stoppable,
    with_kind,
)
from clearclip.config import benchmarks, find_config, parse_options, protocols
from clearclip.errors import UserError, printable, program
from clearclip.paths import atomic_write, check_writable

if TYPE_CHECKING:
    from clearclip.evaluation.evaluate import Job
    from clearclip.evaluation.passes import Benchmark
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
        "--datasets",
        nargs="+",
        metavar="CONFIG",
        help="voc20, sclip/voc20 or config files (default: all eight, or all of a protocol that has none of them)",
    )
    parser.add_argument(
        "--protocol", default="clearclip", help="whose voc20 it is: clearclip, sclip, naclip, …, or all"
    )
    parser.add_argument(
        "--against", metavar="METHOD",
        help="what the others are compared with, on the same images; evaluated as well (default: the first)",
    )  # fmt: skip
    add_evaluation(parser)
    add_sharing(parser)
    parser.add_argument("--markdown", metavar="FILE", help="also write the table as Markdown")
    parser.add_argument(
        "--published", action="store_true",
        help="print what has been published under all protocols, with its sources, and evaluate nothing",
    )  # fmt: skip
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
    methods = list(dict.fromkeys(str(Spec.parse(method)) for method in arguments.methods))
    present, missing = [], []
    there = benchmarks(arguments.protocol)  # none of "all"
    datasets = arguments.datasets or [name for name in BENCHMARKS if name in there] or there or list(BENCHMARKS)
    for path in config_paths(datasets, arguments.protocol):
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


class Comparison:
    """Differences of each result from that of the reference method, which is evaluated before it."""

    def __init__(self, against: str, records: Path):
        self.against, self.records = against, records
        self.references: list[Result] = []
        self.opened: dict[str, Benchmark] = {}

    def add(self, run: "Run", result: "Result") -> "Result":
        """The result with its difference, where there is a result of the reference on the same images."""
        from clearclip.evaluation.evaluate import open_benchmark
        from clearclip.evaluation.results.differences import comparable, difference

        if result["method"] == self.against:
            self.references.append(result)
            return result
        reference = next((one for one in self.references if comparable(result, one)), None)
        if reference is None:
            return result
        try:
            samples = open_benchmark(run, self.opened).samples
            gain = difference(result, reference, samples, self.records)
        except (UserError, KeyError) as error:  # say, records that were moved away meanwhile
            print(f"{result['method']} is not compared with {self.against}: {with_kind(error)}", file=sys.stderr)
            return result
        return {**result, "differences": {self.against: gain}}


def evaluate_runs(job: "Job", workbook: str, comparison: Comparison) -> tuple[list["Result"], list[str]]:
    """The results of all runs, appended to the workbook one by one, and the names of those that failed."""
    from clearclip.evaluation.evaluate import evaluate_all, work_dir
    from clearclip.evaluation.results import append_results, write_result

    found, failed = [], []

    def report(error: Exception, run: "Run") -> None:
        if not job.reports:  # rank 0 is told, and says it
            return
        failed.append(f"{run.config.benchmark.name}: {run.method}, {run.config.model.backbone}")
        print(f"error: {failed[-1]}: {printable(with_kind(error))}", file=sys.stderr)

    with stoppable(job.reports):
        for outcome in evaluate_all(job):
            if outcome.error:
                report(outcome.error, outcome.run)
            if not outcome.result:
                continue
            result = comparison.add(outcome.run, outcome.result)
            if result is not outcome.result:
                write_result(result, work_dir(job, outcome.run))
            found.append(result)
            print(score(outcome.run, result), file=sys.stderr)
            try:
                append_results([result], workbook, saved_at=f"{work_dir(job, outcome.run)}/result.json")
            except UserError as error:
                report(error, outcome.run)
    return found, failed


def show_published(arguments: argparse.Namespace) -> None:
    from clearclip.cli.field import show

    if arguments.markdown:
        check_writable(arguments.markdown)
    names = [Path(name).stem.removeprefix("cfg_") for name in arguments.datasets or ()]
    show(names, (lambda text: write_text(arguments.markdown, text)) if arguments.markdown else None)


def write_text(path: str, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def evaluate_table(arguments: argparse.Namespace) -> None:
    parse_options(arguments.cfg_options)
    grid = Grid.parse(arguments.grid) if arguments.grid else None
    if grid:
        arguments.methods = grid.methods
    config_paths(arguments.datasets or [], arguments.protocol)  # what needs no PyTorch is found at once

    from clearclip.evaluation.evaluate import Job
    from clearclip.evaluation.results import as_markdown, as_text, table
    from clearclip.registry import import_modules
    from clearclip.spec import Spec

    share, awaited, reports = shares(arguments)
    import_modules(arguments.modules)
    against = str(Spec.parse(arguments.against or arguments.methods[0]))
    arguments.methods = [against, *arguments.methods]  # first, so that what follows can be compared with it
    check_outputs(arguments)
    if arguments.markdown:
        check_writable(arguments.markdown)
    runs, missing = plan(arguments)
    for error in missing:
        print(f"missing: {error}", file=sys.stderr)
    found: list[Result] = []
    failed: list[str] = []
    if runs:
        with launched(arguments) as ranks:
            job = Job(runs, (), Path(arguments.records), share, reports, awaited, ranks, arguments.fresh)
            found, failed = evaluate_runs(job, arguments.results, Comparison(against, job.records))
    if found:
        rows = table(found)
        pivots = grid.pivots(found) if grid else []
        print("\n\n".join([as_text(rows), *(pivot.text() for pivot in pivots)]))
        print(f"results in {arguments.results}")
        if arguments.markdown:
            parts = [as_markdown(rows), *(pivot.markdown() for pivot in pivots)]
            write_text(arguments.markdown, "\n\n".join(parts) + "\n")
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    if failed or not runs or (missing and arguments.datasets):
        raise SystemExit(2)


@program
def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    arguments = parse_arguments(argv, prog)
    if arguments.published:
        return show_published(arguments)
    with said_once(arguments):
        evaluate_table(arguments)
