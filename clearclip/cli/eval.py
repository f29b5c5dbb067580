"""Evaluate one benchmark: `clearclip eval voc20 --method ClearCLIP`."""

import argparse
import os
import sys
import time

from clearclip.cli.options import add_evaluation, model_settings
from clearclip.config import find_config, parse_options
from clearclip.errors import UserError, program


def parse_arguments(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog, description="Evaluate a method on one benchmark and record the result.")
    parser.add_argument("config", nargs="?", help="voc20, sclip/voc20 or a config file")
    parser.add_argument("--config", "--datasets", dest="option", metavar="CONFIG", help="the same, as an option")
    parser.add_argument("--protocol", default="clearclip", help="whose voc20 it is: clearclip, sclip, naclip, …")
    parser.add_argument(
        "--method", "--methods", metavar="METHOD", help="as in ClearCLIP:attention=kk,residual=1 or NACLIP+PAMR"
    )
    parser.add_argument(
        "--backbone", "--backbones", metavar="BACKBONE", help="architecture, arch:tag, local-dir:FOLDER"
    )
    parser.add_argument("--pretrained", help="weights: a tag, a file, openai-int8, or auto")
    parser.add_argument("--work-dir", metavar="DIR", help="where result.json goes (default: under work_dirs/)")
    parser.add_argument("--show-dir", metavar="DIR", help="save image, ground truth and prediction side by side")
    add_evaluation(parser)
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if (arguments.config is None) == (arguments.option is None):
        parser.error("give one config, such as voc20")
    arguments.config = arguments.config or arguments.option
    return arguments


@program
def check_arguments(argv: list[str]) -> None:
    """End the program, as `main` would, for arguments that are wrong whatever is on the disk."""
    arguments = parse_arguments(argv)
    parse_options(arguments.cfg_options)
    find_config(arguments.config, arguments.protocol)


def evaluate_one(arguments: argparse.Namespace) -> None:
    overrides = parse_options(arguments.cfg_options)
    path = find_config(arguments.config, arguments.protocol)

    from clearclip.evaluation.datasets import check_dataset, left_aside
    from clearclip.evaluation.results import append_results, as_text, check_workbook, table
    from clearclip.evaluation.run import default_work_dir, evaluate, load_config
    from clearclip.paths import check_writable
    from clearclip.registry import import_modules

    import_modules(arguments.modules)
    check_workbook(arguments.results)
    model = {key: getattr(arguments, key) for key in ("method", "backbone", "pretrained")}
    run = load_config(path, model | model_settings(arguments), overrides, arguments.limit)
    work_dir = arguments.work_dir or default_work_dir(run)
    check_writable(f"{work_dir}/result.json")
    if arguments.show_dir:
        check_writable(f"{arguments.show_dir}/image.png")
    note = left_aside(check_dataset(run))
    if note and _rank() == 0:
        print(note, file=sys.stderr)

    result = evaluate(run, work_dir, arguments.show_dir, arguments.launcher)
    if result is None:  # another rank reports
        return
    print(as_text(table([result])))
    print(f"aAcc {result['aAcc']:.2f}, {result['images_per_second']:.2f} images/s; {work_dir}/result.json")
    append_results([result], arguments.results, saved_at=f"{work_dir}/result.json")
    print(f"appended to {arguments.results}")


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


@program
def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    arguments = parse_arguments(argv, prog)
    try:
        evaluate_one(arguments)
    except UserError:
        if _rank() != 0:
            time.sleep(20)  # rank 0 finds the same and says so; its end stops this process
        raise
