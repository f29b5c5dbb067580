"""Draw the label maps of the sanity set: polygons.json and classes.txt -> labels/*.png."""

import json
import sys
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter

# `python datasets/sanity/draw.py` puts only datasets/sanity/ on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from clearclip.errors import program
from clearclip.visualize import save_label_map
from clearclip.vocabulary import load_vocabulary

ROOT = Path(__file__).parent
IGNORED = 255


def draw(polygons: list[dict], size: tuple[int, int], classes: tuple[str, ...]) -> Image.Image:
    """Paint polygons in order, later ones over earlier, on ignored ground; `size` is (width, height).

    The two pixels at either side of a border are ignored as well: no outline is drawn more exactly.
    """
    index = {name: i for i, name in enumerate(classes)} | {"ignored": IGNORED}
    labels = Image.new("L", size, IGNORED)
    brush = ImageDraw.Draw(labels)
    for polygon in polygons:
        brush.polygon([tuple(point) for point in polygon["points"]], fill=index[polygon["class"]])
    largest, smallest = labels.filter(ImageFilter.MaxFilter(5)), labels.filter(ImageFilter.MinFilter(5))
    border = ImageChops.difference(largest, smallest).point(lambda value: IGNORED if value else 0)
    return ImageChops.lighter(labels, border)


@program
def main():
    classes = load_vocabulary(ROOT / "classes.txt").classes
    for name, polygons in json.loads((ROOT / "polygons.json").read_text()).items():
        with Image.open(ROOT / "images" / name) as image:
            labels = draw(polygons, image.size, classes)
        save_label_map(labels, ROOT / "labels" / f"{Path(name).stem}.png", classes)


if __name__ == "__main__":
    main()
