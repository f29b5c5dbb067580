#!/usr/bin/env python
"""Segment pictures: `python demo.py photo.jpg --names cat "grass, lawn" sky`."""

import argparse
import sys
import time
from pathlib import Path

from clearclip.errors import UserError, program

SAMPLE = Path(__file__).parent / "datasets" / "sanity" / "images" / "horses.jpg"
SAMPLE_NAMES = ["sky", "horse", "grass, meadow", "tree, forest"]


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description="Segment pictures into anything that you can name.")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="pictures (default: a sample, CLIP beside it)")
    parser.add_argument("--names", nargs="+", metavar="NAME", help='what to look for; synonyms as "grass, lawn"')
    parser.add_argument("--classes", metavar="FILE", help="the same from a file, one class a line")
    parser.add_argument("--method", default="ClearCLIP", help="see --list; options as in ClearCLIP:attention=kk")
    parser.add_argument("--compare", nargs="+", default=[], metavar="METHOD", help="other methods, side by side")
    parser.add_argument("--backbone", default="ViT-B-16", help="OpenCLIP architecture, or arch:tag")
    parser.add_argument("--pretrained", default="auto", help="weights: a tag, a file, openai-int8, or auto")
    parser.add_argument("--text-embeddings", metavar="FILE", help="saved text embeddings in place of a text tower")
    parser.add_argument("--threshold", type=float, default=0.0, help="below this probability: the first class")
    parser.add_argument("--short-side", type=int, default=448, help="pixels; larger finds smaller things, slower")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--precision", default="auto", help="auto, fp32, fp16, bf16")
    parser.add_argument("--output", default="demo_output", metavar="DIR", help="where pictures go")
    parser.add_argument("--list", action="store_true", help="list methods and backbones, and end")
    return parser.parse_args(argv)


def print_lists() -> None:
    from clearclip import list_backbones, list_methods

    print("methods")
    for method in list_methods():
        print(f"  {method.name:12} {method.summary} ({method.paper})")
    print("backbones: weights (any other OpenCLIP ViT with a class token as arch:tag)")
    for name, tags in list_backbones():
        print(f"  {name:12} {', '.join(tags)}")


def output_paths(images: list[Path], folder: Path) -> list[Path]:
    """Where each picture's overlay goes, without the extension; pictures of one name do not share it."""
    stems = [image.stem for image in images]
    return [folder / (stem if stems.count(stem) == 1 else f"{index + 1}-{stem}") for index, stem in enumerate(stems)]


@program
def main(argv=None):
    arguments = parse_arguments(argv)
    if arguments.list:
        return print_lists()
    if arguments.names and arguments.classes:
        raise UserError("give class names by --names or by --classes, not by both")
    if arguments.images and not (arguments.names or arguments.classes):
        raise UserError('say what to look for, such as --names cat "grass, lawn"')

    from clearclip import Segmenter, Vocabulary
    from clearclip.segmenter import read_image
    from clearclip.visualize import overlay, save_label_map, sheet
    from clearclip.vocabulary import load_vocabulary

    if arguments.classes:
        vocabulary = load_vocabulary(arguments.classes)
    else:
        vocabulary = Vocabulary.of(arguments.names or SAMPLE_NAMES)
    paths = [Path(image) for image in arguments.images or [SAMPLE]]
    compare = arguments.compare or ([] if arguments.images else ["CLIP"])
    images = [read_image(path) for path in paths]  # a damaged one should not wait for the weights

    backbone, segmenters = arguments.backbone, {}
    for method in dict.fromkeys([*compare, arguments.method]):
        segmenters[method] = Segmenter(
            method,
            backbone,
            arguments.pretrained,
            text_embeddings=arguments.text_embeddings,
            short_side=arguments.short_side,
            threshold=arguments.threshold,
            device=arguments.device,
            precision=arguments.precision,
        )
        backbone = segmenters[method].backbone
    Path(arguments.output).mkdir(parents=True, exist_ok=True)
    for path, image, target in zip(paths, images, output_paths(paths, Path(arguments.output))):
        start = time.perf_counter()
        results = {method: segmenter(image, vocabulary) for method, segmenter in segmenters.items()}
        seconds = time.perf_counter() - start
        labels = results[arguments.method].labels
        pictures = {method: overlay(image, result.labels, result.names) for method, result in results.items()}
        if compare:
            picture = sheet([[("photograph", image), *pictures.items()]])
        else:
            picture = pictures[arguments.method]
        picture.save(f"{target}.png")
        save_label_map(labels, f"{target}_labels.png", len(vocabulary))
        shares = {name: float((labels == index).mean()) for index, name in enumerate(vocabulary.classes)}
        found = sorted((name for name in shares if shares[name] > 0), key=shares.get, reverse=True)
        print(f"{path}: " + ", ".join(f"{name} {shares[name]:.0%}" for name in found) + f" ({seconds:.1f} s)")
        print(f"overlay: {target}.png, labels: {target}_labels.png")


if __name__ == "__main__":
    sys.exit(main())
