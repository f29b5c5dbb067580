"""A vocabulary doctor: `clearclip names classes.txt --images photos/`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from clearclip.cli.options import add_device, add_modules, positive
from clearclip.cli.own_data import add_own_data, own_run
from clearclip.errors import UserError, program
from clearclip.paths import check_writable

if TYPE_CHECKING:
    from clearclip.doctor import Examination


def parse_arguments(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog,
        description="Say which names CLIP cannot tell apart, which synonyms help, and what in pictures has no name. "
        "With --masks names are judged by ground truth, without by what they claim.",
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="class file, one class a line, synonyms by commas")
    parser.add_argument("--words", metavar="FILE", help="other words that regions are compared with, or none")
    parser.add_argument("--method", default="ClearCLIP", help="by whose scores names are judged, see segment --list")
    parser.add_argument("--backbone", default="ViT-B-16", help="OpenCLIP architecture, or arch:tag")
    parser.add_argument("--pretrained", default="auto", help="weights: a tag, a file, openai-int8, or auto")
    parser.add_argument("--text-embeddings", metavar="FILE", help="saved text embeddings in place of a text tower")
    parser.add_argument("--limit", type=positive, metavar="N", help="the first N pictures alone")
    parser.add_argument("--output", metavar="FILE", help="all that was found, as JSON")
    add_device(parser, default="auto")
    add_own_data(parser)
    add_modules(parser)
    arguments = parser.parse_args(argv)
    if bool(arguments.file) == bool(arguments.classes):
        parser.error("give one class file, such as classes.txt")
    arguments.classes = arguments.file or arguments.classes
    if not arguments.images:
        parser.error("give pictures to look at, by --images DIR")
    return arguments


def examine(arguments: argparse.Namespace) -> "Examination":
    """Look at all pictures."""
    from tqdm import tqdm

    from clearclip.doctor import Examination, plain_words
    from clearclip.images import find_pictures
    from clearclip.segmenter import Segmenter
    from clearclip.vocabulary import load_vocabulary

    vocabulary = load_vocabulary(arguments.classes)
    words = () if arguments.words == "none" else plain_words(*filter(None, [arguments.words]))
    if arguments.masks:
        return examine_labelled(arguments, words)
    paths, skipped = find_pictures([arguments.images])
    if skipped:
        print(f"left out: {skipped[0].path} ({skipped[0].reason}) and {len(skipped) - 1} more", file=sys.stderr)
    segmenter = Segmenter(
        arguments.method,
        arguments.backbone,
        arguments.pretrained,
        text_embeddings=arguments.text_embeddings,
        device=arguments.device,
        precision=arguments.precision,
    )
    examination = Examination(segmenter, vocabulary, words)
    for path in tqdm(paths[: arguments.limit], desc="pictures", leave=False, disable=None):
        try:
            examination.look_at(path)
        except UserError as error:  # the other pictures go on
            print(f"left out: {error}", file=sys.stderr)
    return examination


def examine_labelled(arguments: argparse.Namespace, words: tuple[str, ...]) -> "Examination":
    """Look at all pictures that have a mask, read as `clearclip eval` reads them."""
    from tqdm import tqdm

    from clearclip.backbones import load_backbone
    from clearclip.doctor import Examination
    from clearclip.evaluation.evaluate import build_segmenter, open_benchmark
    from clearclip.evaluation.run import backbone_settings
    from clearclip.evaluation.sampling import sample
    from clearclip.vocabulary import load_vocabulary

    keys = ("method", "backbone", "pretrained", "text_embeddings", "device", "precision")
    run = own_run(arguments, {key: getattr(arguments, key) for key in keys}, {})
    benchmark = open_benchmark(run, {})
    segmenter = build_segmenter(run, load_backbone(**backbone_settings(run)), {})
    examination = Examination(segmenter, load_vocabulary(run.config.model.vocabulary), words)
    indices = tqdm(range(len(benchmark.samples)), desc="pictures", leave=False, disable=None)
    for one in sample(run, segmenter, examination.queries, benchmark, indices, examination.searches):
        examination.add(one.path, one.scores, one.truth, one.features)
    return examination


@program
def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    arguments = parse_arguments(argv, prog)
    if arguments.output:
        check_writable(Path(arguments.output))
        if Path(arguments.output).resolve() in {
            Path(file).resolve() for file in (arguments.classes, arguments.words) if file
        }:
            raise UserError(f"{arguments.output} would be written over the names it is made of; give another --output")

    from clearclip.registry import import_modules
    from clearclip.spec import Spec

    import_modules(arguments.modules)
    Spec.parse(arguments.method)
    examination = examine(arguments)
    if not examination.searches and arguments.words != "none":
        print(f"{arguments.method} has no features to compare with words: regions are not looked for", file=sys.stderr)
    diagnosis = examination.diagnosis()
    print(diagnosis)
    if arguments.output:
        diagnosis.save(arguments.output)
        print(f"all of it: {arguments.output}")
