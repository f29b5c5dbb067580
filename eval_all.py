#!/usr/bin/env python
"""The benchmark table: every method × backbone × data set in one process, each backbone loaded once."""

import argparse
import sys
from itertools import product
from pathlib import Path

from clearclip.errors import UserError, program
from clearclip.paths import atomic_write, check_writable

CONFIGS = Path(__file__).parent / "configs"


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description="Evaluate methods on benchmarks and print one table.")
    parser.add_argument("--methods", nargs="+", default=["CLIP", "MaskCLIP", "SCLIP", "NACLIP", "ClearCLIP"])
    parser.add_argument("--backbones", nargs="+", default=["ViT-B-16"], help="architectures, or arch:tag")
    parser.add_argument("--pretrained", default="openai", help="weights of backbones that name no tag")
    parser.add_argument("--datasets", nargs="+", help="names such as voc20 ade20k, or configs (default: all eight)")
    parser.add_argument("--protocol", default="clearclip", help="clearclip, or a folder of configs/ such as sclip")
    parser.add_argument("--text-embeddings", metavar="FILE", help="saved text embeddings; {dataset} is filled in")
    parser.add_argument("--results", metavar="FILE", default="results.xlsx", help="spreadsheet to append to")
    parser.add_argument("--markdown", metavar="FILE", help="also write the table as Markdown")
    parser.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", default=[], help="override any config key")
    return parser.parse_args(argv)


def config_path(dataset: str, protocol: str) -> Path:
    """The config of a data set's name under a protocol; a path is taken as it is."""
    if dataset.endswith(".py"):
        return Path(dataset)
    folder = CONFIGS if protocol == "clearclip" else CONFIGS / protocol
    path = folder / f"cfg_{dataset}.py"
    if not path.is_file():
        known = ", ".join(sorted(file.stem.removeprefix("cfg_") for file in folder.glob("cfg_*.py")))
        raise UserError(f"no config {path}; protocol {protocol!r} has {known or 'no configs at all'}")
    return path


@program
def main(argv=None):
    arguments = parse_arguments(argv)
    from eval import config_options

    overrides = config_options(arguments.cfg_options)
    from clearclip.evaluation.datasets import check_dataset, one_line
    from clearclip.evaluation.results import BENCHMARKS, append_results, as_markdown, as_text, check_workbook, table
    from clearclip.evaluation.run import default_work_dir, evaluate, find_backbone, load_config
    from clearclip.methods import parse_method
    from clearclip.refine import split_refinement

    check_workbook(arguments.results)
    if arguments.markdown:
        check_writable(arguments.markdown)
    for method in arguments.methods:
        parse_method(split_refinement(method)[0])  # a misspelt name should not wait for the runs before it
    paths, missing = [], []
    for dataset in arguments.datasets or BENCHMARKS:
        path = str(config_path(dataset, arguments.protocol))
        config = load_config(path, overrides=overrides)
        try:
            check_dataset(config)
            paths.append(path)
        except UserError as error:
            missing.append(error)
    results, failed = [], []

    def report(error, run):
        failed.append(run)
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        print(f"error: {kind}{one_line(error)}", file=sys.stderr)

    runs = {backbone: [] for backbone in arguments.backbones}
    for backbone, path, method in product(runs, paths, arguments.methods):
        model = dict(method=method, backbone=backbone, pretrained=arguments.pretrained)
        config = load_config(path, model, overrides)
        if arguments.text_embeddings:
            config.model.text_embeddings = arguments.text_embeddings.replace("{dataset}", config.benchmark.name)
        check_writable(default_work_dir(config) / "result.json")
        runs[backbone].append((method, config))
    for backbone in runs:
        for method, config in runs[backbone]:
            try:
                find_backbone(config)
            except Exception as error:
                report(error, backbone)
                break
            run = f"{config.benchmark.name}: {method}, {backbone}"
            print(run, file=sys.stderr)
            try:
                results.append(evaluate(config))
                append_results(results[-1:], arguments.results, saved_at=f"{default_work_dir(config)}/result.json")
            except Exception as error:  # the other runs go on, whatever one meets
                report(error, run)
    if results:
        rows = table(results)
        print(as_text(rows))
        print(f"results in {arguments.results}")
        if arguments.markdown:
            with atomic_write(arguments.markdown) as temporary:
                temporary.write_text(as_markdown(rows) + "\n", encoding="utf-8")
    for error in missing:
        print(f"missing: {error}", file=sys.stderr)
    for run in failed:
        print(f"failed: {run}", file=sys.stderr)
    if failed or not results or (missing and arguments.datasets):
        raise SystemExit(2)


if __name__ == "__main__":
    main()
