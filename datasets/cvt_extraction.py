"""Aerial pictures with one class besides the background, buildings, roads or water, as SegEarth-OV evaluates them.

  whu_aerial     label/* of WHU-BD/val, to label_cvt
  whu_sat2       label/* of WHU-Sat-II/1.cropped/test, to label_cvt
  inria          images/*.tif, gt/*.tif of AerialImageDataset/train; 27 of them in tiles of 1000 x 1000
  xbd            images/*_pre_disaster.png, targets/*_pre_disaster_target.png of xBD/test
  chn6_cug       *.jpg and *.png of CHN6-CUG/val, in any folders
  deepglobe      *.jpg and *.png of GlobalRoadSet_Val/DeepGlobe_test_1530, in any folders
  massachusetts  label/* of GlobalRoadSet_Val/Massachusetts_test_49, to label_cvt
  spacenet       label/* of GlobalRoadSet_Val/SpaceNet_test_567, to label_cvt
  wbs_si         Masks/* of WBS-SI, to Masks_cvt; the config reads the list wbs-si_val.txt there

Label maps become plain 8-bit grey, 0 for the background and 1 for the class, which is what masks have at 128 and above
(xBD: at 1 and above). Pictures are linked where their names must change.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from _common import convert_chosen, find_files, place_image, write_image
from _tiles import read_grey, size, square, write_tiles

from clearclip.errors import UserError, program

Job = tuple  # a mask, the label map that is made of it, and what else that needs

HALF, ANY = 128, 1  # the least value of the class
TILES = square(1000)
INRIA = {
    "austin": (1, 7, 12, 22, 24, 36),
    "chicago": (10, 14, 23, 26),
    "kitsap": (9, 14, 25, 34, 35, 36),
    "tyrol-w": (1, 3, 25, 36),
    "vienna": (3, 6, 9, 11, 15, 18, 20),
}
KINDS = re.compile(r"_(sat|mask|osm|gt|label|image|img)$", re.IGNORECASE)  # how a picture and its mask differ in name
MADE = ("image_cvt", "label_cvt")


def one_class(path: Path, least: int) -> np.ndarray:
    """1 where a mask has `least` or more, 0 elsewhere; of a mask of 0 and 1, 1 where it has 1."""
    grey = read_grey(path)
    return (grey >= (least if grey.max() > 1 else 1)).astype(np.uint8)


def convert(mask: Path, target: Path, least: int, image: Path | None = None, picture: Path | None = None) -> None:
    if image and picture:
        place_image(image, picture, copy=False)
    write_image(target, one_class(mask, least), "TIFF" if target.suffix == ".tif" else "PNG")


def convert_tiles(mask: Path, target: Path, image: Path, targets: list[tuple[Path, Path]]) -> None:
    write_tiles(image, one_class(mask, HALF), TILES, targets)


def in_place(root: Path, masks: str = "label", labels: str = "label_cvt", suffix: str = ".png") -> Iterator[Job]:
    """Jobs for masks whose pictures are used as they are."""
    for path in find_files(root / masks, ""):
        yield path, root / labels / f"{path.stem}{suffix}", HALF


def whu_sat2(root: Path) -> Iterator[Job]:
    return in_place(root, suffix=".tif")


def wbs_si(root: Path) -> Iterator[Job]:
    return in_place(root, "Masks", "Masks_cvt")


def inria(root: Path) -> Iterator[Job]:
    for name in (f"{city}{number}" for city, numbers in INRIA.items() for number in numbers):
        image, mask = (root / folder / f"{name}.tif" for folder in ("images", "gt"))
        targets = []
        for top, left in TILES.corners(*size(mask)):
            tile = f"{name}_{left}_{top}_{left + TILES.width}_{top + TILES.height}.png"
            targets.append((root / "img_dir/split_test" / tile, root / "ann_dir/split_test" / tile))
        yield mask, targets[-1][1], image, targets


def xbd(root: Path) -> Iterator[Job]:
    for mask in find_files(root / "targets", "_pre_disaster_target.png"):
        name = f"{mask.stem.removesuffix('_target')}.png"
        yield mask, root / "targets_cvt_pre" / name, ANY, root / "images" / name, root / "images_pre" / name


def renamed(root: Path) -> Iterator[Job]:
    """Jobs for pictures and masks, wherever they are, that get a common name."""

    def by_name(suffix: str) -> dict[str, Path]:
        found = find_files(root, suffix, "**/*")
        return {KINDS.sub("", path.stem): path for path in found if path.parent.name not in MADE}

    pictures, masks = by_name(".jpg"), by_name(".png")
    for name, mask in masks.items():
        if name not in pictures:
            raise UserError(f"{mask} has no picture {name}*.jpg below {root}: unpack the data set again")
        yield mask, root / "label_cvt" / f"{name}.png", HALF, pictures[name], root / "image_cvt" / f"{name}.jpg"


DATASETS = {
    "whu_aerial": (in_place, convert, "WHU-BD/val"),
    "whu_sat2": (whu_sat2, convert, "WHU-Sat-II/1.cropped/test"),
    "inria": (inria, convert_tiles, "AerialImageDataset/train"),
    "xbd": (xbd, convert, "xBD/test"),
    "chn6_cug": (renamed, convert, "CHN6-CUG/val"),
    "deepglobe": (renamed, convert, "GlobalRoadSet_Val/DeepGlobe_test_1530"),
    "massachusetts": (in_place, convert, "GlobalRoadSet_Val/Massachusetts_test_49"),
    "spacenet": (in_place, convert, "GlobalRoadSet_Val/SpaceNet_test_567"),
    "wbs_si": (wbs_si, convert, "WBS-SI"),
}


@program
def main():
    convert_chosen(__doc__, DATASETS, "masks")


if __name__ == "__main__":
    main()
