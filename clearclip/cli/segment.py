"""Segment pictures and videos: `clearclip segment photo.jpg --names cat "grass, lawn" sky`."""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearclip.cli.inputs import Inputs, check_names, find_inputs, left_out, lonely
from clearclip.cli.options import add_calibration, add_device, add_modules, positive
from clearclip.cli.outputs import Outputs, in_words, kinds, stems
from clearclip.cli.status import Status
from clearclip.config import sanity_folder
from clearclip.errors import UserError, out_of_memory, program

if TYPE_CHECKING:
    from clearclip.features import Kept
    from clearclip.segmentation import Segmentation
    from clearclip.segmenter import Segmenter
    from clearclip.vocabulary import Vocabulary

MAX_PIXELS = 200_000_000  # as `clearclip.images` has it, which takes NumPy to import
USUAL = {"method": "ClearCLIP", "backbone": "ViT-B-16", "pretrained": "auto", "short_side": 448}
SAMPLE = "images/horses.jpg"  # of the sanity set
SAMPLE_NAMES = ["sky", "horse", "grass, meadow", "tree, forest"]


def parse_arguments(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog, description="Segment pictures and videos into anything that you can name.")
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE",
        help="pictures, folders, globs, videos, the number of a camera, or features that clearclip features kept "
        "(default: a sample)",
    )  # fmt: skip
    parser.add_argument("--recursive", action="store_true", help="read folders with all folders in them")
    names = parser.add_argument_group("what to look for")
    names.add_argument("--names", nargs="+", metavar="NAME", help='one class each; synonyms as "grass, lawn"')
    names.add_argument("--classes", metavar="FILE", help="the same from a file, one class a line")
    names.add_argument(
        "--other",
        action="store_true",
        help="what none of the names describes becomes `other`; else every pixel takes a name",
    )
    names.add_argument(
        "--threshold", type=float, default=0.0, metavar="P", help="below this probability, too, a pixel is `other`"
    )
    model = parser.add_argument_group("how")
    model.add_argument(
        "--method", help=f"see --list; options as in ClearCLIP:attention=kk (default: {USUAL['method']})"
    )
    model.add_argument("--compare", nargs="+", default=[], metavar="METHOD", help="other methods, side by side")
    model.add_argument("--backbone", help=f"OpenCLIP architecture, or arch:tag (default: {USUAL['backbone']})")
    model.add_argument("--pretrained", help="weights: a tag, a file, openai-int8, or auto (default)")
    model.add_argument("--text-embeddings", metavar="FILE", help="saved text embeddings in place of a text tower")
    model.add_argument("--short-side", type=int, help="pixels; larger finds smaller things, slower (default: 448)")
    add_calibration(model)
    add_device(model, default="auto")
    model.add_argument(
        "--max-pixels", type=positive, default=MAX_PIXELS, metavar="N",
        help="pictures of more pixels are refused before they fill the memory (default: 200 million)",
    )  # fmt: skip
    out = parser.add_argument_group("what comes of it")
    out.add_argument("--output", default="demo_output", metavar="DIR", help="where all files go (default: demo_output)")
    out.add_argument(
        "--save", nargs="+", default=["overlay,labels"], metavar="KIND",
        help="any of labels,overlay,scores,heat,features,coco,json (default: overlay,labels)",
    )  # fmt: skip
    out.add_argument("--arrays", default="safetensors", help="scores and features as safetensors or npy")
    out.add_argument(
        "--smooth", type=float, metavar="S", help="of a video: the share of the frames before, such as 0.8"
    )
    out.add_argument("--frames", type=positive, metavar="N", help="of a video or camera: the first N frames alone")
    out.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--list", action="store_true", help="list methods and backbones, and end")
    add_modules(parser)
    return parser.parse_args(argv)


def print_lists() -> None:
    from clearclip.backbones import BACKBONES, list_backbones
    from clearclip.methods import list_methods
    from clearclip.refine import REFINEMENTS

    print("methods")
    for method in list_methods():
        print(f"  {method.name:12} {method.summary} ({method.paper})")
    print("refinements")
    for refinement in REFINEMENTS.entries():
        print(f"  +{refinement.name:11} {refinement.summary} ({refinement.paper})")
    print("backbones: weights (any other ViT of OpenCLIP as arch:tag)")
    width = max(len(name) for name, _ in list_backbones())
    for family in BACKBONES.entries():
        print(f"  {family.name}: {family.summary} ({family.paper})")
        for name, tags in family.build.names.items():  # type: ignore[attr-defined]
            print(f"    {name:{width}} {', '.join(tags)}")


def segment(arguments: argparse.Namespace, status: Status) -> None:
    from clearclip.other import class_names
    from clearclip.vocabulary import Vocabulary, load_vocabulary

    status.say("starting PyTorch")
    if note := check_names(arguments.names or []):
        status.note(note)
    if arguments.classes:
        vocabulary = load_vocabulary(arguments.classes)
    else:
        vocabulary = Vocabulary.of(arguments.names or SAMPLE_NAMES)
    other = arguments.other or arguments.threshold > 0
    if note := lonely(vocabulary, other):
        status.note(note)
    inputs = find_inputs(arguments.images or [str(sanity_folder() / SAMPLE)], arguments.recursive)
    if note := left_out(inputs.skipped):
        status.note(note)
    windows = settle(arguments, inputs.kept)
    compare = arguments.compare or ([] if arguments.images else ["CLIP"])
    methods = list(dict.fromkeys([*compare, arguments.method]))
    outputs = Outputs(Path(arguments.output), kinds(arguments.save), arguments.arrays)
    outputs.check(sources(inputs), class_names(vocabulary, other), other)
    check(arguments, inputs, methods)

    status.say(f"loading {arguments.backbone} ({arguments.pretrained})")
    segmenters = load_segmenters(methods, arguments, other, windows)
    main = segmenters[arguments.method]
    for kept in inputs.kept:
        kept.note.check(main.feature_settings, str(kept.path))
    status.say(f"embedding {to_embed(main, vocabulary)}")
    main.queries(vocabulary)
    failed = bool(sources(inputs)) and segment_pictures(arguments, inputs, vocabulary, segmenters, outputs, status)
    if inputs.films:
        from clearclip.cli.films import segment_films

        segment_films(arguments, inputs.films, vocabulary, main, status)
    if failed:
        raise SystemExit(2)


def settle(arguments: argparse.Namespace, kept: "Sequence[Kept]") -> dict[str, Any]:
    """Set what no option says of the model: as it was where features are kept of it, else as usual.

    Returns the rest of what `Segmenter` needs to be as it was.
    """
    options = USUAL | (kept[0].note.options if kept else {})
    for key in USUAL:
        if getattr(arguments, key) is None:
            setattr(arguments, key, options[key])
    return {key: value for key, value in options.items() if key not in USUAL}


def sources(inputs: Inputs) -> list[Path]:
    """The files of pictures and of what takes their place."""
    return [*inputs.pictures, *(kept.named for kept in inputs.kept)]


def check(arguments: argparse.Namespace, inputs: Inputs, methods: Sequence[str]) -> None:
    """Raise UserError for what is wrong with options and files: that should not wait for the weights."""
    from clearclip.backbones import choose_device, choose_precision
    from clearclip.images import image_size
    from clearclip.settings import check_settings
    from clearclip.spec import Spec

    check_settings({"short_side": arguments.short_side, "threshold": arguments.threshold})
    choose_precision(arguments.precision, choose_device(arguments.device))
    for method in methods:
        Spec.parse(method)
    if inputs.kept and len(methods) > 1:
        raise UserError("--compare needs pictures, for features are kept of one method; give the pictures themselves")
    if inputs.films:
        from clearclip.cli.films import check_films

        check_films(arguments, inputs.films)
    elif arguments.smooth is not None:
        raise UserError("--smooth averages over the frames of a video, and there is none; leave it out")
    if inputs.pictures[:1] and inputs.pictures[0] in inputs.named:
        image_size(inputs.pictures[0], arguments.max_pixels)


def to_embed(segmenter: "Segmenter", vocabulary: "Vocabulary") -> str:
    """What text is to be embedded, in words: "20 names × 80 templates"."""
    names = f"{len(vocabulary.queries)} names"
    if segmenter.other:
        names += f" and {len(segmenter.other.words)} words for other"
    if segmenter.embedder.embeddings is not None:
        return f"{names}, of a file"
    if segmenter.backbone.text_stand_in:
        return f"{names} by the text student"
    from clearclip.vocabulary import load_templates

    templates = segmenter.embedder.templates
    count = len(load_templates(templates) if isinstance(templates, str) else templates)
    return f"{names} × {count} templates"


def segment_pictures(
    arguments: argparse.Namespace,
    inputs: Inputs,
    vocabulary: "Vocabulary",
    segmenters: Mapping[str, "Segmenter"],
    outputs: Outputs,
    status: Status,
) -> bool:
    """Segment pictures one by one and write their files. Returns whether one that was named, or all, failed."""
    asked = dict(scores=bool({"scores", "heat"} & set(outputs.what)), features="features" in outputs.what)
    failed: list[Path] = []
    paths, images = sources(inputs), [*inputs.pictures, *inputs.kept]
    count, begin = len(paths), time.perf_counter()
    try:
        for done, (image, path, stem) in enumerate(zip(images, paths, stems(paths))):
            pace = f", {(time.perf_counter() - begin) / done:.1f} s each" if done else ""
            status.say(f"{count} pictures: {done} done{pace}" if count > 1 else f"segmenting {path.name}")
            start = time.perf_counter()
            try:
                results = {
                    method: segmenter(
                        image,
                        vocabulary,
                        max_pixels=arguments.max_pixels,
                        **(asked if method == arguments.method else {}),
                    )
                    for method, segmenter in segmenters.items()
                }
                seconds = time.perf_counter() - start
                main = results.pop(arguments.method)
                written = outputs.save(stem, main, results)
            except UserError as error:  # the other pictures go on
                reason = str(error)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                reason = f"not enough memory for {path}: give a smaller --short-side or a smaller copy"
            else:
                status.clear()
                report(path, main, seconds, written)
                continue
            failed.append(path)
            status.note(f"error: {reason}" if path in inputs.named else f"left out: {reason}")
    finally:
        for path in outputs.finish():
            status.clear()
            print(f"all pictures: {path}")
    if not set(failed) <= inputs.named:
        status.note(f"{count - len(failed)} of {count} pictures are done, {len(failed)} could not be read")
    return len(failed) == count or bool(set(failed) & inputs.named)


def report(path: Path, result: "Segmentation", seconds: float, written: Sequence[Path]) -> None:
    """Say what is in a picture, and where its files are."""
    took = f"{seconds:.1f} s" if seconds >= 0.1 else f"{1000 * seconds:.0f} ms"
    print(f"{path}: {in_words(result.areas)} ({took})")
    if written:
        print(f"  {', '.join(map(str, written[:4]))}{f' and {len(written) - 4} more' if len(written) > 4 else ''}")


def load_segmenters(
    methods: Sequence[str], arguments: argparse.Namespace, other: bool, windows: Mapping[str, Any]
) -> dict[str, "Segmenter"]:
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
            other=other,
            calibration=arguments.calibration if method == arguments.method else None,
            **windows,
        )
        backbone = segmenters[method].backbone
    if calibration := segmenters[arguments.method].calibration:
        print(f"{arguments.method} is calibrated on {calibration.source}: not training-free", file=sys.stderr)
    return segmenters


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
        with Status(arguments.quiet) as status:
            segment(arguments, status)
