"""The benchmark table: every method × backbone × data set in one process, each backbone loaded once."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from clearclip.cli.options import add_evaluation, model_settings
from clearclip.config import benchmarks, find_config, parse_options, protocols
from clearclip.errors import UserError, program
from clearclip.paths import atomic_write, check_writable

if TYPE_CHECKING:
    from clearclip.evaluation.results import Result
    from clearclip.evaluation.run import Run


def parse_arguments(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog, description="Evaluate methods on benchmarks and print one table.")
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD", default=["CLIP", "MaskCLIP", "SCLIP", "NACLIP", "ClearCLIP"],
        help="as in ClearCLIP:attention=kk,residual=1 or NACLIP+PAMR",
    )  # fmt: skip
    parser.add_argument("--backbones", nargs="+", metavar="BACKBONE", default=["ViT-B-16"], help="or arch:tag")
    parser.add_argument("--pretrained", default="openai", help="weights of backbones that name no tag")
    parser.add_argument(
        "--datasets", nargs="+", metavar="CONFIG", help="voc20, sclip/voc20 or config files (default: all eight)"
    )
    parser.add_argument(
        "--protocol", default="clearclip", help="whose voc20 it is: clearclip, sclip, naclip, …, or all"
    )
    add_evaluation(parser)
    parser.add_argument("--markdown", metavar="FILE", help="also write the table as Markdown")
    return parser.parse_args(argv)


def config_paths(datasets: list[str], protocol: str) -> list[Path]:
    """The configs of data sets under a protocol, or under each that has the data set for "all"."""
    if protocol != "all":
        return [find_config(dataset, protocol) for dataset in datasets]
    named = [(dataset, [name for name in protocols() if dataset in benchmarks(name)]) for dataset in datasets]
    return [find_config(dataset, name) for dataset, names in named for name in names or ["clearclip"]]


def plan(arguments: argparse.Namespace) -> tuple[dict[str, list["Run"]], list[UserError]]:
    """All runs by backbone, and what says which data sets are missing.

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
    runs: dict[str, list[Run]] = {}
    for backbone in arguments.backbones:
        runs[backbone] = []
        for base in present:
            for method in methods:
                model = dict(method=method, backbone=backbone, pretrained=arguments.pretrained)
                run = load_config(base.path, model | model_settings(arguments), overrides, arguments.limit)
                check_writable(default_work_dir(run) / "result.json")
                runs[backbone].append(run)
    return runs, missing


def evaluate_all(runs: dict[str, list["Run"]], workbook: str) -> tuple[list["Result"], list[str]]:
    """The results of all runs, appended to the workbook one by one, and the names of those that failed."""
    from clearclip.backbones import load_backbone
    from clearclip.evaluation.datasets import one_line
    from clearclip.evaluation.results import append_results
    from clearclip.evaluation.run import backbone_settings, default_work_dir, evaluate

    results: list[Result] = []
    failed = []

    def report(error: Exception, name: str) -> None:
        failed.append(name)
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        print(f"error: {kind}{one_line(error)}", file=sys.stderr)

    for name, group in runs.items():
        settings = backbone = None
        for run in group:
            if backbone_settings(run) != settings:
                settings, backbone = backbone_settings(run), None  # one is freed before the next is loaded
                try:
                    backbone = load_backbone(**settings)
                except Exception as error:
                    report(error, name)
                    break
            title = f"{run.config.benchmark.name}: {run.method}, {name}"
            print(title, file=sys.stderr)
            try:
                result = evaluate(run, backbone=backbone)
                assert result is not None  # this is the only process
                results.append(result)
                append_results([result], workbook, saved_at=f"{default_work_dir(run)}/result.json")
            except Exception as error:  # the other runs go on, whatever one meets
                report(error, title)
    return results, failed


@program
def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    arguments = parse_arguments(argv, prog)
    parse_options(arguments.cfg_options)
    config_paths(arguments.datasets or [], arguments.protocol)  # what needs no PyTorch is found at once

    from clearclip.evaluation.results import as_markdown, as_text, check_workbook, table
    from clearclip.registry import import_modules

    import_modules(arguments.modules)
    check_workbook(arguments.results)
    if arguments.markdown:
        check_writable(arguments.markdown)
    runs, missing = plan(arguments)
    results, failed = evaluate_all(runs, arguments.results)
    if results:
        rows = table(results)
        print(as_text(rows))
        print(f"results in {arguments.results}")
        if arguments.markdown:
            with atomic_write(arguments.markdown) as temporary:
                temporary.write_text(as_markdown(rows) + "\n", encoding="utf-8")
    for error in missing:
        print(f"missing: {error}", file=sys.stderr)
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    if failed or not results or (missing and arguments.datasets):
        raise SystemExit(2)
