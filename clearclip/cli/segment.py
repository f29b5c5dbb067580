"""Segment pictures: `clearclip segment photo.jpg --names cat "grass, lawn" sky`."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from clearclip.cli.options import add_calibration, add_device, add_modules, positive
from clearclip.config import sanity_folder
from clearclip.errors import UserError, program
from clearclip.paths import atomic_write, check_writable

if TYPE_CHECKING:
    import numpy as np

    from clearclip.segmenter import Segmentation, Segmenter

MAX_PIXELS = 200_000_000  # as `clearclip.images` has it, which takes NumPy to import
SAMPLE = "images/horses.jpg"  # of the sanity set
SAMPLE_NAMES = ["sky", "horse", "grass, meadow", "tree, forest"]


def parse_arguments(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog, description="Segment pictures into anything that you can name.")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="pictures or folders of them (default: a sample)")
    parser.add_argument(
        "--names",
        nargs="+",
        metavar="NAME",
        help='what to look for, and what else is there: every pixel takes a name; synonyms as "grass, lawn"',
    )
    parser.add_argument("--classes", metavar="FILE", help="the same from a file, one class a line")
    parser.add_argument("--method", default="ClearCLIP", help="see --list; options as in ClearCLIP:attention=kk")
    parser.add_argument("--compare", nargs="+", default=[], metavar="METHOD", help="other methods, side by side")
    parser.add_argument("--backbone", default="ViT-B-16", help="OpenCLIP architecture, or arch:tag")
    parser.add_argument("--pretrained", default="auto", help="weights: a tag, a file, openai-int8, or auto")
    parser.add_argument("--text-embeddings", metavar="FILE", help="saved text embeddings in place of a text tower")
    parser.add_argument("--threshold", type=float, default=0.0, help="below this probability: the first class")
    parser.add_argument("--short-side", type=int, default=448, help="pixels; larger finds smaller things, slower")
    add_calibration(parser)
    add_device(parser, default="auto")
    parser.add_argument(
        "--max-pixels", type=positive, default=MAX_PIXELS, metavar="N",
        help="pictures of more pixels are refused before they fill the memory (default: 200 million)",
    )  # fmt: skip
    parser.add_argument("--output", default="demo_output", metavar="DIR", help="where overlays and label maps go")
    parser.add_argument("--list", action="store_true", help="list methods and backbones, and end")
    add_modules(parser)
    return parser.parse_args(argv)


def print_lists() -> None:
    from clearclip.backbones import list_backbones
    from clearclip.methods import list_methods

    print("methods")
    for method in list_methods():
        print(f"  {method.name:12} {method.summary} ({method.paper})")
    print("backbones: weights (any other OpenCLIP ViT with a class token as arch:tag)")
    for name, tags in list_backbones():
        print(f"  {name:12} {', '.join(tags)}")


def output_paths(images: list[Path], folder: Path) -> list[tuple[Path, Path]]:
    """Where each picture's overlay and label map go; pictures of one name get a number.

    Raises UserError for one that cannot be written, that is itself a picture to read, or that two pictures share.
    """
    stems = [image.stem for image in images]
    folded = [stem.casefold() for stem in stems]  # some file systems take A and a for the same
    targets = []
    for number, stem in enumerate(stems, 1):
        name = stem if folded.count(stem.casefold()) == 1 else f"{number}-{stem}"
        targets.append((folder / f"{name}_overlay.png", folder / f"{name}_labels.png"))
    inputs, seen = {image.resolve() for image in images}, set()
    for target in (path for pair in targets for path in pair):
        if target.resolve() in inputs:
            raise UserError(f"{target} would be written over one of the pictures; give another --output")
        if target in seen:
            raise UserError(f"{target} would be written for two pictures; rename one of them")
        seen.add(target)
        check_writable(target)
    return targets


def segment(arguments: argparse.Namespace) -> None:
    from clearclip.vocabulary import Vocabulary, load_vocabulary

    if arguments.classes:
        vocabulary = load_vocabulary(arguments.classes)
    else:
        vocabulary = Vocabulary.of(arguments.names or SAMPLE_NAMES)
    if len(vocabulary) == 1:
        print("one name takes every pixel: name what else is in the picture, too", file=sys.stderr)
    paths = pictures(arguments.images)
    targets = output_paths(paths, Path(arguments.output))
    compare = arguments.compare or ([] if arguments.images else ["CLIP"])
    methods = list(dict.fromkeys([*compare, arguments.method]))

    from clearclip.backbones import choose_device, choose_precision
    from clearclip.images import read_image
    from clearclip.segmenter import check_settings
    from clearclip.spec import Spec

    # What is wrong should not wait for the weights.
    check_settings({"short_side": arguments.short_side, "threshold": arguments.threshold})
    choose_precision(arguments.precision, choose_device(arguments.device))
    for method in methods:
        Spec.parse(method)
    read_image(paths[0], arguments.max_pixels)  # not all of them: that would fill the memory

    segmenters = load_segmenters(methods, arguments)
    failed = False
    for path, target in zip(paths, targets):
        try:
            image = read_image(path, arguments.max_pixels)
            start = time.perf_counter()
            results = {
                method: segmenter(path, vocabulary, max_pixels=arguments.max_pixels)
                for method, segmenter in segmenters.items()
            }
            seconds = time.perf_counter() - start
        except UserError as error:  # the other pictures go on
            failed = True
            print(f"error: {error}", file=sys.stderr)
            continue
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            failed = True
            print(
                f"error: not enough memory for {path}: give a smaller --short-side or a smaller copy", file=sys.stderr
            )
            continue
        save(image, results, results[arguments.method], target, side_by_side=bool(compare))
        print(f"{path}: {shares(results[arguments.method])} ({seconds:.1f} s)")
        print("overlay: {}, labels: {}".format(*target))
    if failed:
        raise SystemExit(2)


def out_of_memory(error: Exception) -> bool:
    """Whether an error, of Python's or PyTorch's, says that memory ran out."""
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def pictures(inputs: list[str]) -> list[Path]:
    """The pictures that files, folders and patterns name, or the sample. Says on stderr what a folder holds besides."""
    from clearclip.images import find_pictures

    paths, skipped = find_pictures(inputs or [sanity_folder() / SAMPLE])
    if skipped:
        more = f" and {len(skipped) - 1} more" if len(skipped) > 1 else ""
        print(f"left out: {skipped[0].path} ({skipped[0].reason}){more}", file=sys.stderr)
    return paths


def load_segmenters(methods: list[str], arguments: argparse.Namespace) -> dict[str, "Segmenter"]:
    """A `Segmenter` for each method, on one backbone."""
    from clearclip.segmenter import Segmenter

    backbone, segmenters = arguments.backbone, {}
    for method in methods:
        segmenters[method] = Segmenter(
            method,
            backbone,
            arguments.pretrained,
            text_embeddings=arguments.text_embeddings,
            short_side=arguments.short_side,
            threshold=arguments.threshold,
            device=arguments.device,
            precision=arguments.precision,
            calibration=arguments.calibration if method == arguments.method else None,
        )
        backbone = segmenters[method].backbone
    if calibration := segmenters[arguments.method].calibration:
        print(f"{arguments.method} is calibrated on {calibration.source}: not training-free", file=sys.stderr)
    return segmenters


def save(
    image: "np.ndarray",
    results: dict[str, "Segmentation"],
    result: "Segmentation",
    target: tuple[Path, Path],
    side_by_side: bool,
) -> None:
    """Write the overlay, or a sheet of those of all results, and the label map of `result`."""
    from clearclip.visualize import overlay, save_label_map, sheet

    overlay_path, labels_path = target
    if side_by_side:
        pictures = [(method, overlay(image, one.labels, one.names)) for method, one in results.items()]
        picture = sheet([[("photograph", image), *pictures]])
    else:
        picture = overlay(image, result.labels, result.names)
    with atomic_write(overlay_path) as temporary:
        picture.save(temporary)
    save_label_map(result.labels, labels_path, len(result.names))


def shares(result: "Segmentation") -> str:
    """The share of the picture that each name takes, the largest first: "cat 60%, grass 40%"."""
    found = {name: float((result.labels == index).mean()) for index, name in enumerate(result.names)}
    largest = sorted((name for name in found if found[name] > 0), key=found.__getitem__, reverse=True)
    return ", ".join(f"{name} {found[name]:.0%}" for name in largest)


@program
def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    arguments = parse_arguments(argv, prog)
    if arguments.names and arguments.classes:
        raise UserError("give class names by --names or by --classes, not by both")
    if arguments.images and not (arguments.names or arguments.classes or arguments.list):
        raise UserError('say what to look for, such as --names cat "grass, lawn"')

    from clearclip.registry import import_modules

    import_modules(arguments.modules)
    if arguments.list:
        print_lists()
    else:
        segment(arguments)
