"""Draw photographs beside their segmentations, as the documents show them; with no options the README's first picture:

    python tools/readme_picture.py
    python tools/readme_picture.py --images datasets/sanity/images/castle.jpg datasets/sanity/images/photographer.jpg \
        datasets/sanity/images/coffee.jpg --classes datasets/sanity/classes.txt --short-side 448 \
        --methods SC-CLIP Overview+EDGES --output docs/overview.jpg
"""

import argparse
import sys
from pathlib import Path

# `python tools/readme_picture.py` puts only tools/ on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clearclip import Segmenter, Vocabulary
from clearclip.errors import program
from clearclip.visualize import comparison, save_picture, sheet
from clearclip.vocabulary import load_vocabulary

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["sky", "horse", "grass, meadow", "tree, forest"]
WIDTH = 1600  # pixels: more than a page shows, for fine screens


@program
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["CLIP", "SC-CLIP"])
    parser.add_argument("--pretrained", default="openai-int8")
    parser.add_argument("--short-side", type=int, default=672, help="thin legs want more than the usual 448")
    parser.add_argument("--images", type=Path, nargs="+", default=[ROOT / "datasets/sanity/images/horses.jpg"])
    parser.add_argument("--classes", type=Path, help="a class file (default: sky, horse, grass, tree)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/horses.png")
    arguments = parser.parse_args()

    vocabulary = load_vocabulary(arguments.classes) if arguments.classes else Vocabulary.of(NAMES)
    backbone, found = "ViT-B-16", {}
    for method in arguments.methods:
        segmenter = Segmenter(method, backbone, arguments.pretrained, short_side=arguments.short_side)
        backbone = segmenter.backbone
        found[method] = [result.labels for result in segmenter(arguments.images, vocabulary)]
    rows = []
    for index, path in enumerate(arguments.images):
        labels = {method: results[index] for method, results in found.items()}
        title = path.stem if len(arguments.images) > 1 else "photograph"
        rows.append(comparison(path, labels, vocabulary.classes, title, WIDTH))
    save_picture(sheet(rows), arguments.output, smallest=True)


if __name__ == "__main__":
    main()
