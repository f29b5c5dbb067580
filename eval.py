#!/usr/bin/env python
"""Evaluate one benchmark: `python eval.py configs/cfg_voc20.py --method ClearCLIP`."""

import argparse
import os
import time

from clearclip.errors import UserError, program


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description="Evaluate a method on one benchmark and record the result.")
    parser.add_argument("config", nargs="?", help="benchmark config, such as configs/cfg_voc20.py")
    parser.add_argument("--config", dest="config_option", metavar="FILE", help="the same, as an option")
    parser.add_argument("--method", help="ClearCLIP, SCLIP, …; options as in ClearCLIP:attention=kk,residual=1")
    parser.add_argument("--backbone", help="OpenCLIP architecture, arch:tag, or local-dir:FOLDER")
    parser.add_argument("--pretrained", help="weights: a tag, a file, openai-int8, or auto")
    parser.add_argument("--text-embeddings", metavar="FILE", help="saved text embeddings in place of a text tower")
    parser.add_argument("--work-dir", metavar="DIR", help="where result.json goes (default: under work_dirs/)")
    parser.add_argument("--show-dir", metavar="DIR", help="save image, ground truth and prediction side by side")
    parser.add_argument("--results", metavar="FILE", default="results.xlsx", help="spreadsheet to append to")
    parser.add_argument(
        "--cfg-options", nargs="+", metavar="KEY=VALUE", default=[],
        help="override any config key, such as model.temperature=40",
    )  # fmt: skip
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if (arguments.config is None) == (arguments.config_option is None):
        parser.error("give one config, such as configs/cfg_voc20.py")
    arguments.config = arguments.config or arguments.config_option
    return arguments


def config_options(pairs: list[str]) -> dict:
    """Read KEY=VALUE pairs as MMEngine does: numbers, booleans, lists and quoted strings are understood."""
    from mmengine.config import DictAction

    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--cfg-options {pair!r} must be KEY=VALUE, such as model.temperature=40")
        options[key] = DictAction._parse_iterable(value)
    return options


def run(arguments) -> None:
    overrides = config_options(arguments.cfg_options)
    from clearclip.evaluation.results import append_results, as_text, check_workbook, table
    from clearclip.evaluation.run import default_work_dir, evaluate, load_config
    from clearclip.paths import check_writable

    check_workbook(arguments.results)
    model = dict(
        method=arguments.method,
        backbone=arguments.backbone,
        pretrained=arguments.pretrained,
        text_embeddings=arguments.text_embeddings,
    )
    config = load_config(arguments.config, model, overrides)
    work_dir = arguments.work_dir or default_work_dir(config)
    check_writable(f"{work_dir}/result.json")
    if arguments.show_dir:
        check_writable(f"{arguments.show_dir}/image.png")
    result = evaluate(config, work_dir, arguments.show_dir, arguments.launcher)
    if result is None:  # another rank reports
        return
    print(as_text(table([result])))
    print(f"aAcc {result['aAcc']:.2f}, {result['images_per_second']:.2f} images/s; {work_dir}/result.json")
    append_results([result], arguments.results, saved_at=f"{work_dir}/result.json")
    print(f"appended to {arguments.results}")


@program
def main(argv=None):
    arguments = parse_arguments(argv)
    try:
        run(arguments)
    except UserError:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(20)  # rank 0 finds the same and says so; its end stops this process
        raise


if __name__ == "__main__":
    main()
