"""Evaluate one benchmark: `clearclip eval voc20 --method ClearCLIP`."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from clearclip.cli.options import add_calibration, add_evaluation, model_settings
from clearclip.cli.own_data import add_own_data, own_run
from clearclip.cli.reporting import add_sharing, check_outputs, launched, own_device, said_once, shares, stoppable
from clearclip.config import find_config, parse_options
from clearclip.errors import program


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
    parser.add_argument("--show-dir", metavar="DIR", help="save image, ground truth, prediction and errors on a sheet")
    parser.add_argument(
        "--features", metavar="DIR", help="patch features that clearclip features kept, in place of the network"
    )
    add_calibration(parser)
    add_evaluation(parser)
    add_sharing(parser)
    add_own_data(parser)
    arguments = parser.parse_args(argv)
    own = arguments.images or arguments.masks or arguments.classes
    if own and not (arguments.config or arguments.option):
        return arguments
    if own:
        parser.error("give a config, or --images, --masks and --classes, not both")
    if (arguments.config is None) == (arguments.option is None):
        parser.error("give one config, such as voc20, or pictures of your own by --images, --masks and --classes")
    arguments.config = arguments.config or arguments.option
    return arguments


@program
def check_arguments(argv: list[str]) -> None:
    """End the program, as `main` would, for arguments that are wrong whatever is on the disk."""
    arguments = parse_arguments(argv)
    parse_options(arguments.cfg_options)
    if arguments.config:
        find_config(arguments.config, arguments.protocol)


def evaluate_one(arguments: argparse.Namespace) -> None:
    overrides = parse_options(arguments.cfg_options)
    path = find_config(arguments.config, arguments.protocol) if arguments.config else None

    from clearclip.evaluation.datasets import check_dataset, left_aside
    from clearclip.evaluation.evaluate import Job, evaluate_all, work_dir
    from clearclip.evaluation.results import append_results, as_text, table
    from clearclip.evaluation.run import load_config
    from clearclip.paths import check_writable
    from clearclip.registry import import_modules

    share, awaited, reports = shares(arguments)
    import_modules(arguments.modules)
    check_outputs(arguments)
    model = {key: getattr(arguments, key) for key in ("method", "backbone", "pretrained", "calibration", "features")}
    model |= model_settings(arguments) | {"device": own_device(arguments)}
    run = load_config(path, model, overrides, arguments.limit) if path else own_run(arguments, model, overrides)
    note = left_aside(check_dataset(run)) if path else ""
    if note and reports:
        print(note, file=sys.stderr)
    show_dir = Path(arguments.show_dir) if arguments.show_dir else None
    given = Path(arguments.work_dir) if arguments.work_dir else None
    job = Job([run], [given], Path(arguments.records), share, reports, awaited, None, arguments.fresh, show_dir)
    check_writable(work_dir(job, run) / "result.json")
    if show_dir:
        check_writable(show_dir / "image.png")

    with stoppable(reports), launched(arguments) as ranks:
        (outcome,) = evaluate_all(replace(job, ranks=ranks))
        if outcome.error and not reports:
            raise outcome.error
    if outcome.result:
        result, saved = outcome.result, f"{work_dir(job, run)}/result.json"
        print(as_text(table([result])))
        print(f"aAcc {result['aAcc']:.2f}, {result['images_per_second']:.2f} images/s; {saved}", flush=True)
    if outcome.error:
        raise outcome.error
    if outcome.result:
        append_results([result], arguments.results, saved_at=saved)
        print(f"appended to {arguments.results}")
    elif reports:
        print(f"part {share} is counted, others are not yet: the last of them gives the result", file=sys.stderr)


@program
def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    arguments = parse_arguments(argv, prog)
    with said_once(arguments):
        evaluate_one(arguments)
