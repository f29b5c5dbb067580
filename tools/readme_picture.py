"""Draw docs/horses.png, the README's first picture: `python tools/readme_picture.py`."""

import argparse
import sys
from pathlib import Path

# `python tools/readme_picture.py` puts only tools/ on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clearclip import Segmenter
from clearclip.errors import program
from clearclip.visualize import compare, save_picture

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["sky", "horse", "grass, meadow", "tree, forest"]
WIDTH = 1600  # pixels: more than a page shows, for fine screens


@program
def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=["CLIP", "SC-CLIP"])
    parser.add_argument("--pretrained", default="openai-int8")
    parser.add_argument("--short-side", type=int, default=672, help="thin legs want more than the usual 448")
    parser.add_argument("--image", type=Path, default=ROOT / "datasets/sanity/images/horses.jpg")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/horses.png")
    arguments = parser.parse_args()

    backbone, results = "ViT-B-16", {}
    for method in arguments.methods:
        segmenter = Segmenter(method, backbone, arguments.pretrained, short_side=arguments.short_side)
        backbone = segmenter.backbone
        results[method] = segmenter(arguments.image, NAMES).labels
    save_picture(compare(arguments.image, results, NAMES, width=WIDTH), arguments.output, smallest=True)


if __name__ == "__main__":
    main()
