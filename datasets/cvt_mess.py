"""Data sets that MESS collects, in the layout of its toolkit; what that has prepared already serves as it is.

  dark_zurich  gt/val/night/GOPR0356/*_gt_labelIds.png, 255 where *_gt_invGray.png is 255
  mhp          annotations/<id>_*.png of test_list.txt, the largest label of all persons at a pixel
  atlantis     images/test/*/*.jpg, masks/test/*/*.png, flattened; 1..56 to 0..55
  isaid        val/images/*.png, val/**/*_instance_color_RGB.png; tiles of 1024 x 1024
  potsdam      *_IRRG.tif, *_label.tif of the 14 test tiles; tiles of 1024 x 1024
  floodnet     test/test-org-img/*.jpg, test/test-label-img/*_lab.png; tiles of 1024 x 1024
  uavid        uavid_val/seq*/{Images,Labels}/*.png; tiles of 1024 x 1024
  kvasir       images/*.jpg, masks/*.png of test.txt
  chase_db1    *.jpg, *_1stHO.png, without the first 8
  cryonuseg    tissue images/*.tif, Annotator 1*/**/mask binary/*.png
  deepcrack    test_lab/*.png
  suim         TEST/masks/*.bmp
  cub200       segmentations/<class>/*.png of train_test_split.txt
  cwfid        annotations/*_annotation.png of the 21 test images

Tiles lie side by side and are padded at the right and at the bottom. The pictures are linked where they need no
change. Label maps are plain 8-bit grey, 255 is ignored.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from _common import (
    convert_chosen,
    find_files,
    place_image,
    read_ids,
    read_image,
    read_lines,
    write_image,
    write_lines,
)
from _tiles import Colours, by_colour, read_colours, read_rgb, size, square, write_tiles
from cvt_remote_sensing import ISAID, ISPRS, POTSDAM_TILES

from clearclip.errors import UserError, program

Job = tuple  # a label map's source, its target, and what else the converter of it needs

TILES = square(1024, inside=False)
LABELS, IMAGES = "annotations_detectron2", "images_detectron2"
CITYSCAPES = (0, 7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # unlabeled, road, …
UAVID = {
    (0, 0, 0): 0,  # others
    (128, 0, 0): 1,  # building
    (128, 64, 128): 2,  # road
    (0, 128, 0): 3,  # tree
    (128, 128, 0): 4,  # grass
    (64, 0, 128): 5,  # moving car
    (192, 0, 192): 6,  # parked car
    (64, 64, 0): 7,  # humans
}
POTSDAM = {colour: label - 1 for colour, label in ISPRS.items() if label}
SUIM = {(255 * (n >> 2), 255 * (n >> 1 & 1), 255 * (n & 1)): n for n in range(8)}
CWFID = {(0, 0, 0): 0, (255, 0, 0): 1, (0, 255, 0): 2}
CWFID_TEST = (1, 3, 4, 9, 10, 13, 15, 21, 22, 26, 28, 29, 30, 32, 35, 39, 44, 47, 48, 54, 60)


# What makes the labels


def first_channel(path: Path) -> np.ndarray:
    """A mask [H, W], uint8, whatever its mode; 0 and 1 for one of 1 bit."""
    _, pixels = read_image(path)
    return (pixels if pixels.ndim == 2 else pixels[..., 0]).astype(np.uint8)


def foreground(path: Path) -> np.ndarray:
    """1 where a mask of 0 and 255, or of 0 and 1, is set."""
    pixels = first_channel(path)
    return (pixels > (128 if pixels.max() > 1 else 0)).astype(np.uint8)


def night(path: Path) -> np.ndarray:
    """Cityscapes' ids as 0 unlabeled, 1 road, …; 255 where nothing is visible."""
    table = np.full(256, 255, np.uint8)
    table[list(CITYSCAPES)] = np.arange(20)
    labels = table[read_ids(path)]
    unseen = first_channel(path.with_name(path.name.replace("_gt_labelIds", "_gt_invGray")))
    labels[unseen == 255] = 255
    return labels


def persons(path: Path) -> np.ndarray:
    """The masks of all persons of a picture, whose first one is `path`, in one."""
    name = path.stem.split("_")[0]
    masks = find_files(path.parent, ".png", f"{name}_*")
    return np.max([first_channel(mask) for mask in masks], axis=0)


def less_one(path: Path) -> np.ndarray:
    return read_ids(path) - np.uint8(1)  # 0 becomes 255


def bird(path: Path) -> np.ndarray:
    """The number of the species, by which its folder's name begins, on the bird."""
    return (first_channel(path) > 128) * np.uint8(int(path.parent.name.split(".")[0]))


def thresholded(path: Path, colours: Colours) -> np.ndarray:
    """Labels by colours whose channels are not all 0 or 255, as they should be."""
    return by_colour(np.where(read_rgb(path) >= 128, 255, 0), colours, path)


def convert(source: Path, target: Path, read: Callable, options: tuple, image: Path | None, picture: Path | None):
    """Write one label map, and put its picture beside those of the others."""
    if image and picture:
        if image.suffix.lower() == picture.suffix:
            place_image(image, picture, copy=False)
        else:
            write_image(picture, read_rgb(image))
    write_image(target, read(source, *options))


def convert_tiles(source: Path, target: Path, read: Callable, options: tuple, image: Path, targets: list) -> None:
    write_tiles(image, read(source, *options), TILES, targets)


# Where the files are


def partner(folder: Path, stem: str) -> Path:
    """The picture of that name, of whatever suffix."""
    found = [path for path in folder.glob(f"{stem}.*") if path.name[0] != "."]
    if len(found) != 1:
        raise UserError(f"{folder} has {len(found)} pictures {stem}.*, one is wanted: unpack the data set again")
    return found[0]


def listed(root: Path, name: str) -> list[str]:
    """The ids in a list of test pictures, without their suffixes."""
    return [Path(line.split()[0]).stem for _, line in read_lines(root / name, "it names the test pictures")]


def in_place(labels: list[Path], folder: Path, read: Callable, *options) -> Iterator[Job]:
    """Jobs for label maps whose pictures stay where they are."""
    for path in labels:
        yield path, folder / f"{path.stem}.png", read, options, None, None


def beside(
    root: Path, split: str, pairs: list[tuple[Path, Path]], suffix: str, read: Callable, *options
) -> Iterator[Job]:
    """Jobs for pairs (picture, label map) that take the picture's name in MESS's two folders."""
    for image, label in pairs:
        target = root / LABELS / split / f"{image.stem}.png"
        yield label, target, read, options, image, root / IMAGES / split / f"{image.stem}{suffix}"


def tiled(root: Path, split: str, named: list[tuple[str, Path, Path]], suffix: str, read: Callable, *options, kind=""):
    """Jobs for (id, picture, label map), of which tiles are made."""
    for name, image, label in named:
        count = len(list(TILES.corners(*size(label))))
        targets = [
            (root / IMAGES / split / kind / f"{name}_{k}{suffix}", root / LABELS / split / f"{name}_{k}.png")
            for k in range(count)
        ]
        yield label, targets[-1][1], read, options, image, targets


def dark_zurich(root: Path) -> Iterator[Job]:
    labels = find_files(root / "gt/val/night/GOPR0356", "_gt_labelIds.png")
    return in_place(labels, root / LABELS / "val", night)


def mhp(root: Path) -> Iterator[Job]:
    pairs = []
    for name in listed(root, "test_list.txt"):
        masks = find_files(root / "annotations", ".png", f"{name}_*")
        if not masks:
            raise UserError(f"no {name}_*.png in {root / 'annotations'}: unpack the data set again")
        pairs.append((partner(root / "images", name), masks[0]))
    return beside(root, "test", pairs, ".jpg", persons)


def atlantis(root: Path) -> Iterator[Job]:
    labels = find_files(root / "masks/test", ".png", "**/*")
    pairs = [(partner(root / "images/test" / path.parent.name, path.stem), path) for path in labels]
    return beside(root, "test", pairs, ".jpg", less_one)


def isaid(root: Path) -> Iterator[Job]:
    suffix = "_instance_color_RGB.png"
    labels = find_files(root / "val", suffix, "**/*")
    named = [(name, root / "val/images" / f"{name}.png", path)
             for path in labels for name in [path.name.removesuffix(suffix)]]  # fmt: skip
    return tiled(root, "val", named, ".png", read_colours, ISAID)


def potsdam(root: Path) -> Iterator[Job]:
    def by_tile(suffix: str) -> dict[str, Path]:
        return {"_".join(path.stem.split("_")[2:4]): path for path in find_files(root, suffix, "**/*")}

    pictures, labels = by_tile("_IRRG.tif"), by_tile("_label.tif")
    missing = [name for name in POTSDAM_TILES if name not in pictures or name not in labels]
    if missing:
        raise UserError(f"no *_{missing[0]}_IRRG.tif or *_{missing[0]}_label.tif in {root}: unpack both archives there")
    named = [(name, pictures[name], labels[name]) for name in POTSDAM_TILES]
    return tiled(root, "test", named, ".png", thresholded, POTSDAM, kind="irrg")


def floodnet(root: Path) -> Iterator[Job]:
    labels = find_files(root / "test/test-label-img", "_lab.png")
    named = [(name, partner(root / "test/test-org-img", name), path)
             for path in labels for name in [path.name.removesuffix("_lab.png")]]  # fmt: skip
    return tiled(root, "test", named, ".png", read_ids)


def uavid(root: Path) -> Iterator[Job]:
    labels = find_files(root / "uavid_val", ".png", "seq*/Labels/*")
    named = [(f"{path.parents[1].name}_{path.stem}", path.parents[1] / "Images" / path.name, path) for path in labels]
    return tiled(root, "val", named, ".png", read_colours, UAVID)


def kvasir(root: Path) -> Iterator[Job]:
    pairs = [(partner(root / "images", name), partner(root / "masks", name)) for name in listed(root, "test.txt")]
    return beside(root, "test", pairs, ".png", foreground)


def chase_db1(root: Path) -> Iterator[Job]:
    pictures = find_files(root, ".jpg")[8:]
    pairs = [(path, root / f"{path.stem}_1stHO.png") for path in pictures]
    return beside(root, "test", pairs, ".jpg", foreground)


def cryonuseg(root: Path) -> Iterator[Job]:
    labels = find_files(root, ".png", "Annotator 1*/**/mask binary/*")
    pairs = [(root / "tissue images" / f"{path.stem}.tif", path) for path in labels]
    return beside(root, "", pairs, ".png", foreground)


def deepcrack(root: Path) -> Iterator[Job]:
    return in_place(find_files(root / "test_lab", ".png"), root / LABELS / "test", foreground)


def suim(root: Path) -> Iterator[Job]:
    return in_place(find_files(root / "TEST/masks", ".bmp"), root / LABELS / "test", read_colours, SUIM)


def cub200(root: Path) -> Iterator[Job]:
    what = "it comes with CUB_200_2011"
    paths = dict(line.split() for _, line in read_lines(root / "images.txt", what))
    flags = dict(line.split() for _, line in read_lines(root / "train_test_split.txt", what))
    test = [Path(path) for number, path in paths.items() if flags.get(number) == "0"]
    pairs = [(root / "images" / path, (root / "segmentations" / path).with_suffix(".png")) for path in test]
    return beside(root, "test", pairs, ".jpg", bird)


def cwfid(root: Path) -> Iterator[Job]:
    write_lines(root / "test.txt", [f"{number:03}" for number in CWFID_TEST])  # images/ has those of training, too
    labels = [root / "annotations" / f"{number:03}_annotation.png" for number in CWFID_TEST]
    return in_place(labels, root / LABELS / "test", read_colours, CWFID)


DATASETS = {
    "dark_zurich": (dark_zurich, convert, "Dark_Zurich"),
    "mhp": (mhp, convert, "LV-MHP-v1"),
    "atlantis": (atlantis, convert, "atlantis"),
    "isaid": (isaid, convert_tiles, "isaid"),
    "potsdam": (potsdam, convert_tiles, "ISPRS_Potsdam"),
    "floodnet": (floodnet, convert_tiles, "FloodNet-Supervised_v1.0"),
    "uavid": (uavid, convert_tiles, "uavid_v1.5"),
    "kvasir": (kvasir, convert, "kvasir-instrument"),
    "chase_db1": (chase_db1, convert, "CHASEDB1"),
    "cryonuseg": (cryonuseg, convert, "CryoNuSeg"),
    "deepcrack": (deepcrack, convert, "DeepCrack"),
    "suim": (suim, convert, "SUIM"),
    "cub200": (cub200, convert, "CUB_200_2011"),
    "cwfid": (cwfid, convert, "cwfid"),
}


@program
def main():
    convert_chosen(__doc__, DATASETS, "label maps", LABELS)


if __name__ == "__main__":
    main()
