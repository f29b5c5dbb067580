"""Why a patch gets its class: `clearclip analyze photo.jpg --names horse sky --point 300,250`."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearclip.cli.options import add_device, add_modules, positive
from clearclip.cli.segment import SAMPLE, SAMPLE_NAMES
from clearclip.config import find_config, sanity_folder
from clearclip.errors import UserError, program
from clearclip.paths import atomic_write, check_writable

if TYPE_CHECKING:
    from clearclip.analysis import Inspection
    from clearclip.evaluation.results import Result
    from clearclip.segmenter import Segmenter

FORMATS = ("png", "pdf", "svg")
RESIDUALS = (0.0, 0.25, 0.5, 1.0, 2.0)
Curves = dict[str, list[tuple[float, float, float | None]]]


def parse_arguments(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog, description="Figures and arrays of what the blocks do to a picture, and why a patch gets its class."
    )
    parser.add_argument("image", nargs="?", metavar="IMAGE", help="a picture (default: a sample)")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="what may be in the picture, as for segment")
    parser.add_argument("--classes", metavar="FILE", help="the same from a file, one class a line")
    parser.add_argument("--point", type=point, metavar="X,Y", help="of the patch to explain (default: the middle)")
    parser.add_argument("--layers", type=layers, metavar="N,N…", help="blocks, the first is 1 (default: all)")
    parser.add_argument("--method", default="ClearCLIP", help="whose class the patch gets, see segment --list")
    parser.add_argument("--backbone", default="ViT-B-16", help="OpenCLIP architecture, or arch:tag")
    parser.add_argument("--pretrained", default="auto", help="weights: a tag, a file, openai-int8, or auto")
    parser.add_argument(
        "--text-embeddings", metavar="FILE",
        help="saved text embeddings; with {dataset} in its name they are the data set's alone",
    )  # fmt: skip
    parser.add_argument("--short-side", type=int, default=448, help="pixels to which pictures are resized")
    parser.add_argument("--crop", type=int, default=0, help="windows of so many pixels, every half (default: 0, none)")
    add_device(parser, default="auto")
    parser.add_argument("--output", default="analysis", metavar="DIR", help="where figures and arrays go")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["png"], help="of the figures")
    parser.add_argument("--arrays", choices=("npz", "safetensors"), default="npz", help="how the arrays are kept")
    group = parser.add_argument_group("mIoU against the weight of the residual stream")
    group.add_argument("--dataset", metavar="CONFIG", help="evaluate on a benchmark, too: voc20 or a config file")
    group.add_argument("--limit", type=positive, metavar="N", help="the first N images alone")
    group.add_argument("--residuals", nargs="+", type=weight, default=RESIDUALS, metavar="W", help="weights to try")
    group.add_argument("--records", metavar="DIR", default="work_dirs/records", help="what is counted")
    add_modules(parser)
    return parser.parse_args(argv)


def point(text: str) -> tuple[float, float]:
    """ "300,250", x and y, to (y, x)."""
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be X,Y in pixels, such as 300,250, not {text!r}") from None
    return y, x


def layers(text: str) -> list[int]:
    """ "1,6,12", counted from 1, to indices."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"must be numbers from 1 on, such as 1,6,12, not {text!r}")
    return [int(part) - 1 for part in parts]


def weight(text: str) -> float:
    """A number that is not negative."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number from 0 on, not {text!r}")
    return value


def curve_methods(method: str, residuals: list[float]) -> dict[str, dict[float, str]]:
    """For each curve, by its name, the method of each weight: the method's own attention, and with feed-forward."""
    from clearclip.methods.final_block import FinalBlock
    from clearclip.spec import Spec

    choice = Spec.parse(method).method
    if choice.entry.build is not FinalBlock:
        raise UserError(f"--dataset varies the last block's residual, which {choice.name} does not have; use ClearCLIP")
    attention = dict(choice.settings)["attention"]
    curves = {}
    for forward, name in ((False, "feed-forward off"), (True, "feed-forward on")):
        options = f"ClearCLIP:attention={attention},feed_forward={forward},residual="
        curves[f"{attention}, {name}"] = {value: str(Spec.parse(f"{options}{value:g}")) for value in residuals}
    return curves


def measure(arguments: argparse.Namespace) -> tuple[Curves, list["Result"]]:
    """mIoU of each weight, by curve: one pass over the data set, kept in the records."""
    from clearclip.cli.reporting import stoppable
    from clearclip.evaluation.datasets import check_dataset
    from clearclip.evaluation.evaluate import Job, evaluate_all
    from clearclip.evaluation.run import load_config

    by_curve = curve_methods(arguments.method, arguments.residuals)
    keys = ("backbone", "pretrained", "device", "precision", "text_embeddings")
    settings = {key: getattr(arguments, key) for key in keys}
    runs = {}
    for method in dict.fromkeys(method for curve in by_curve.values() for method in curve.values()):
        runs[method] = load_config(find_config(arguments.dataset), {**settings, "method": method}, {}, arguments.limit)
    check_dataset(next(iter(runs.values())))
    results = {}
    with stoppable():
        for outcome in evaluate_all(Job(list(runs.values()), records=Path(arguments.records))):
            if outcome.error:
                raise outcome.error
            if outcome.result:
                results[outcome.run.method] = outcome.result
                print(f"{outcome.run.method}: mIoU {outcome.result['mIoU']:.2f}", file=sys.stderr)
    curves = {
        name: [(value, results[method]["mIoU"], results[method].get("interval")) for value, method in curve.items()]
        for name, curve in by_curve.items()
    }
    return curves, list(results.values())


def build(arguments: argparse.Namespace) -> "Segmenter":
    from clearclip.segmenter import Segmenter

    text = arguments.text_embeddings
    return Segmenter(
        arguments.method,
        arguments.backbone,
        arguments.pretrained,
        text_embeddings=None if text and "{dataset}" in text else text,
        short_side=arguments.short_side,
        crop=arguments.crop,
        stride=max(1, arguments.crop // 2),
        device=arguments.device,
        precision=arguments.precision,
    )


def analyze(arguments: argparse.Namespace, folder: Path) -> None:
    """Inspect the picture; write figures, arrays and what was found in words."""
    from clearclip.analysis import explain_patch, inspect, window_pixels
    from clearclip.analysis.figures import cells, maps, save, streams
    from clearclip.images import read_image
    from clearclip.vocabulary import Vocabulary, load_vocabulary

    vocabulary = (
        load_vocabulary(arguments.classes) if arguments.classes else Vocabulary.of(arguments.names or SAMPLE_NAMES)
    )
    path = arguments.image or sanity_folder() / SAMPLE
    height, width = read_image(path).shape[:2]  # what is wrong with it should not wait for the weights
    where = arguments.point or ((height - 1) / 2, (width - 1) / 2)
    segmenter = build(arguments)
    depth = len(segmenter.backbone.blocks)
    if arguments.layers and max(arguments.layers) >= depth:
        raise UserError(f"--layers {max(arguments.layers) + 1} is none of the backbone's blocks, 1 to {depth}")
    found = inspect(segmenter, path, vocabulary, layers=arguments.layers, point=where)
    why = explain_patch(segmenter, path, vocabulary, where)
    print(why)
    pixels = window_pixels(segmenter, path, found.place)
    written = [folder / f"inspection.{arguments.arrays}", folder / "analysis.json"]
    found.save(written[0])
    figures = {"streams": streams(found), "maps": maps(found, pixels), "cells": cells(found, pixels)}
    for name, figure in figures.items():
        written += save(figure, folder, name, arguments.formats)
    write_json(written[1], described(arguments, path, segmenter, found, why.name))
    print("written: " + ", ".join(map(str, written)))


def described(
    arguments: argparse.Namespace, path: str | Path, segmenter: "Segmenter", found: "Inspection", name: str
) -> dict[str, Any]:
    """What was asked and found, for JSON."""
    import clearclip

    place = found.place
    return dict(
        image=str(path), method=arguments.method, backbone=segmenter.backbone.name, weights=segmenter.backbone.tag,
        weights_hash=segmenter.backbone.content_hash, version=clearclip.__version__, names=list(found.names),
        point=dict(x=place.point[1], y=place.point[0]), patch=list(place.patch), grid=list(place.grid),
        window=[place.top, place.left, place.height, place.width], short_side=segmenter.short_side,
        layers=[layer + 1 for layer in found.layers], label=name,
        cells=[
            dict(attention=a, residual=r, feed_forward=f, label=found.names[labels[place.patch]])
            for (a, r, f), labels in found.labels.items()
        ],
    )  # fmt: skip


def write_json(path: Path, content: Any) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def residual_curve(arguments: argparse.Namespace, folder: Path) -> None:
    """Evaluate, and write the figure and its numbers."""
    from clearclip.analysis.figures import residual, save

    curves, results = measure(arguments)
    first = results[0]
    title = f"{first['dataset']}, {first['images']} images, {first['backbone']} {first['pretrained']}"
    for name, points in curves.items():
        print(f"{name}: " + ", ".join(f"{value:g}: {score:.2f}" for value, score, _ in points))
    paths = save(residual(curves, title), folder, "residual", arguments.formats)
    write_json(folder / "residual.json", {"title": title, "curves": curves, "results": results})
    print("written: " + ", ".join(map(str, [*paths, folder / "residual.json"])))


def check_matplotlib() -> None:
    """Raise UserError where figures cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError(
            "figures need Matplotlib, which is not installed: pip install 'clearclip[analysis]'; "
            "clearclip.analysis.inspect gives the arrays without it"
        ) from None


@program
def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    arguments = parse_arguments(argv, prog)
    if arguments.names and arguments.classes:
        raise UserError("give class names by --names or by --classes, not by both")
    if arguments.image and not (arguments.names or arguments.classes):
        raise UserError('say what may be in the picture, such as --names horse "grass, meadow" sky')
    if arguments.limit and not arguments.dataset:
        raise UserError("--limit needs --dataset: it is the data set's first images")
    if arguments.dataset:
        find_config(arguments.dataset)
    check_matplotlib()
    folder = Path(arguments.output)
    check_writable(folder / "analysis.json")

    from clearclip.registry import import_modules

    import_modules(arguments.modules)
    if arguments.dataset:
        curve_methods(arguments.method, arguments.residuals)
    analyze(arguments, folder)
    if arguments.dataset:
        residual_curve(arguments, folder)
