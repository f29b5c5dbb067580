"""Fit class offsets and a threshold on labelled images: `clearclip calibrate voc20 --images 50`."""

import argparse
import sys
from pathlib import Path

from clearclip.cli.options import add_evaluation, model_settings, positive
from clearclip.config import find_config, parse_options
from clearclip.errors import UserError, program
from clearclip.paths import check_writable


def parse_arguments(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog,
        description="Fit class offsets and a threshold on some labelled images of a benchmark, and report on the "
        "others. What is calibrated is no longer training-free, and says so.",
    )
    parser.add_argument("config", help="voc20, sclip/voc20 or a config file")
    parser.add_argument("--images", type=positive, default=50, metavar="N", help="how many to fit on (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="which of them (default: 0)")
    parser.add_argument("--protocol", default="clearclip", help="whose voc20 it is: clearclip, sclip, naclip, …")
    parser.add_argument("--method", help="as in ClearCLIP:attention=kk,residual=1 or NACLIP+PAMR")
    parser.add_argument("--backbone", help="architecture, arch:tag, local-dir:FOLDER")
    parser.add_argument("--pretrained", help="weights: a tag, a file, openai-int8, or auto")
    parser.add_argument("--output", metavar="FILE", help="where it is kept (default: <config>.calibration.json)")
    parser.add_argument(
        "--no-report", action="store_true", help="fit alone; clearclip eval --calibration reports later"
    )
    parser.add_argument("--records", metavar="DIR", default="work_dirs/records", help="what is counted")
    add_evaluation(parser)
    return parser.parse_args(argv)


def calibrate(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    from clearclip.backbones import load_backbone
    from clearclip.evaluation.calibrate import calibrate, split
    from clearclip.evaluation.datasets import check_dataset
    from clearclip.evaluation.evaluate import open_benchmark
    from clearclip.evaluation.run import backbone_settings, load_config
    from clearclip.registry import import_modules

    import_modules(arguments.modules)
    overrides = parse_options(arguments.cfg_options)
    path = find_config(arguments.config, arguments.protocol)
    model = {key: getattr(arguments, key) for key in ("method", "backbone", "pretrained")} | model_settings(arguments)
    run = load_config(path, model, overrides, arguments.limit)
    if run.config.model.get("calibration"):
        raise UserError("the config has a calibration already; leave model.calibration out to fit one")
    output = Path(arguments.output or f"{run.config.benchmark.name}.calibration.json")
    check_writable(output)
    check_dataset(run)
    benchmark = open_benchmark(run, {})
    everything = arguments.no_report and arguments.images >= len(benchmark.samples)
    chosen, others = (
        (list(range(len(benchmark.samples))), []) if everything else split(benchmark, arguments.images, arguments.seed)
    )
    backbone = load_backbone(**backbone_settings(run))
    with tqdm(total=len(chosen), desc="images to fit on", leave=False, disable=None) as bar:
        calibration, fit = calibrate(run, backbone, benchmark, chosen, arguments.seed, bar.update)
    calibration.save(output)
    print(f"{output}: fitted on {len(chosen)} images, {calibration.fitted['pixels']} pixels")
    print(f"left-out folds of these: mIoU {fit.plain:.2f}, calibrated {fit.calibrated:.2f}")
    if not any(calibration.offsets):
        print("nothing helps on left-out folds: all offsets are 0; more --images may say more")
    largest = sorted(zip(calibration.offsets, calibration.classes), key=lambda pair: -abs(pair[0]))[:8]
    print("largest offsets: " + ", ".join(f"{name} {offset:+.4f}" for offset, name in largest if offset))
    if calibration.threshold is not None:
        print(f"threshold: {calibration.threshold:g}, was {run.config.model.threshold:g}")
    if not arguments.no_report:
        report(arguments, path, model, overrides, others, output)


def report(
    arguments: argparse.Namespace, path: Path, model: dict, overrides: dict, others: list[int], output: Path
) -> None:
    """Evaluate with and without the calibration on images that it has not seen, in one pass."""
    from clearclip.cli.reporting import stoppable
    from clearclip.evaluation.evaluate import Job, evaluate_all, open_benchmark
    from clearclip.evaluation.results import as_text, table
    from clearclip.evaluation.results.differences import difference
    from clearclip.evaluation.run import INDICES, load_config

    part = {**overrides, INDICES: others}
    runs = [load_config(path, {**model, "calibration": value}, part) for value in (None, str(output.absolute()))]
    print(f"reporting on the other {len(others)} images", file=sys.stderr)
    results = []
    with stoppable():
        for outcome in evaluate_all(Job(runs, records=Path(arguments.records))):
            if outcome.error:
                raise outcome.error
            assert outcome.result is not None
            results.append(outcome.result)
    plain, calibrated = results
    samples = open_benchmark(runs[0], {}).samples
    gain, low, high = difference(calibrated, plain, samples, Path(arguments.records))
    print(as_text(table(results)))
    print(f"calibrated against plain, the same {len(others)} images: {gain:+.2f} mIoU ({low:+.2f} to {high:+.2f})")


@program
def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    calibrate(parse_arguments(argv, prog))
