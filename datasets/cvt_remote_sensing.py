"""Aerial pictures in the layouts of MMSegmentation, <root>/img_dir/<split> and <root>/ann_dir/<split>.

  loveda        Val/{Rural,Urban}/{images_png,masks_png}, linked; labels as they are, 0 is ignored
  openearthmap  <region>/{images,labels}/*.tif of val.txt, linked; labels as they are
  potsdam       *_RGB.tif, *_label_noBoundary.tif of the 14 validation tiles; crops of 512 x 512
  vaihingen     top/top_mosaic_09cm_areaN.tif and …_noBoundary.tif of the 17 validation areas; crops of 512 x 512
  isaid         val/images/*.png, val/**/*_instance_color_RGB.png; patches of 896 x 896 that overlap by 384
  uavid         test_gt/seq*/{Images,Labels}/*.png; patches of 1280 x 1080

The archives are unpacked below <root>, in any folder for Potsdam and Vaihingen. Label maps are plain 8-bit grey:
saved with a palette of none, as some preparations do, they come back as 0 and 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from _common import common_arguments, convert_all, existing, find_files, place_image, read_lines, report
from _tiles import Colours, Tiling, read_colours, size, square, write_tiles

from clearclip.errors import UserError, program
from clearclip.paths import data_root

ISPRS = {  # 0 is the boundary, which is ignored
    (0, 0, 0): 0,
    (255, 255, 255): 1,  # impervious surface
    (0, 0, 255): 2,  # building
    (0, 255, 255): 3,  # low vegetation
    (0, 255, 0): 4,  # tree
    (255, 255, 0): 5,  # car
    (255, 0, 0): 6,  # clutter
}
ISAID = {
    (0, 0, 0): 0,  # background
    (0, 0, 63): 1,  # ship
    (0, 63, 63): 2,  # store tank
    (0, 63, 0): 3,  # baseball diamond
    (0, 63, 127): 4,  # tennis court
    (0, 63, 191): 5,  # basketball court
    (0, 63, 255): 6,  # ground track field
    (0, 127, 63): 7,  # bridge
    (0, 127, 127): 8,  # large vehicle
    (0, 0, 127): 9,  # small vehicle
    (0, 0, 191): 10,  # helicopter
    (0, 0, 255): 11,  # swimming pool
    (0, 191, 127): 12,  # roundabout
    (0, 127, 191): 13,  # soccer ball field
    (0, 127, 255): 14,  # plane
    (0, 100, 155): 15,  # harbor
}
UAVID = {
    (0, 0, 0): 0,  # background clutter
    (128, 0, 0): 1,  # building
    (128, 64, 128): 2,  # road
    (192, 0, 192): 3,  # static car
    (64, 0, 128): 3,  # moving car
    (0, 128, 0): 4,  # tree
    (128, 128, 0): 5,  # low vegetation
    (64, 64, 0): 6,  # human
}
POTSDAM_TILES = [
    "2_13",
    "2_14",
    "3_13",
    "3_14",
    "4_13",
    "4_14",
    "4_15",
    "5_13",
    "5_14",
    "5_15",
    "6_13",
    "6_14",
    "6_15",
    "7_13",
]
VAIHINGEN_AREAS = (2, 4, 6, 8, 10, 12, 14, 16, 20, 22, 24, 27, 29, 31, 33, 35, 38)

Pair = tuple[str, Path, Path]  # a picture's id, the picture and its labels


@dataclass(frozen=True)
class Cut:
    """How a data set is cut: the names of tiles, which know its sides, and the colours of its labels."""

    split: str
    tiling: Tiling
    colours: Colours
    name: str
    label_suffix: str = ".png"


def pair_up(images: list[Path], labels: list[Path], key: Callable[[Path], str], wanted: list[str]) -> list[Pair]:
    """Pictures and label maps by the id that `key` reads from their paths, in the order of `wanted`."""
    pictures, maps = ({key(path): path for path in paths} for paths in (images, labels))
    for kind, found in (("picture", pictures), ("label map", maps)):
        missing = [name for name in wanted if name not in found]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(wanted)} {kind}s are missing, the first is that of {missing[0]}: unpack the "
                "data set's archives (datasets/README.md says where to get them)"
            )
    return [(name, pictures[name], maps[name]) for name in wanted]


def potsdam(root: Path) -> list[Pair]:
    def key(path: Path) -> str:
        return "_".join(path.stem.split("_")[2:4])

    labels = find_files(root, "_label_noBoundary.tif", "**/*")
    return pair_up(find_files(root, "_RGB.tif", "**/*"), labels, key, POTSDAM_TILES)


def vaihingen(root: Path) -> list[Pair]:
    def key(path: Path) -> str:
        return path.stem.removesuffix("_noBoundary").rsplit("_", 1)[-1]

    labels = find_files(root, "_noBoundary.tif", "**/top_mosaic_*")
    pictures = find_files(root, ".tif", "**/top/top_mosaic_*")  # label maps elsewhere have the same names
    return pair_up(pictures, labels, key, [f"area{number}" for number in VAIHINGEN_AREAS])


def isaid(root: Path) -> list[Pair]:
    suffix = "_instance_color_RGB.png"
    labels = find_files(root / "val", suffix, "**/*")
    pictures = [path for path in find_files(root / "val" / "images", ".png", "**/*") if path not in {*labels}]

    def key(path: Path) -> str:
        return path.name.removesuffix(suffix).removesuffix(".png")

    return pair_up(pictures, labels, key, sorted(map(key, labels)))


def uavid(root: Path) -> list[Pair]:
    def key(path: Path) -> str:
        return f"{path.parents[1].name}_{path.stem}"

    pictures, labels = (find_files(root / "test_gt", ".png", f"seq*/{folder}/*") for folder in ("Images", "Labels"))
    return pair_up(pictures, labels, key, sorted(map(key, labels)))


CUT = {
    "potsdam": (potsdam, Cut("val", square(512), ISPRS, "{id}_{left}_{top}_{right}_{bottom}")),
    "vaihingen": (vaihingen, Cut("val", square(512), ISPRS, "{id}_{left}_{top}_{right}_{bottom}")),
    "isaid": (
        isaid,
        Cut("val", square(896, 512), ISAID, "{id}_{top}_{bottom}_{left}_{right}", "_instance_color_RGB.png"),
    ),
    "uavid": (uavid, Cut("test", Tiling(1080, 1280, 1080, 1280), UAVID, "{id}_{top}_{bottom}_{left}_{right}")),
}


def tile_targets(root: Path, cut: Cut, name: str, label: Path) -> list[tuple[Path, Path]]:
    """Where the tiles of a picture and of its label map go."""
    targets = []
    for top, left in cut.tiling.corners(*size(label)):
        tile = cut.name.format(
            id=name, top=top, left=left, bottom=top + cut.tiling.height, right=left + cut.tiling.width
        )
        picture = root / "img_dir" / cut.split / f"{tile}.png"
        targets.append((picture, root / "ann_dir" / cut.split / f"{tile}{cut.label_suffix}"))
    return targets


def convert_tiles(label: Path, target: Path, image: Path, cut: Cut, targets: list[tuple[Path, Path]]) -> None:
    write_tiles(image, read_colours(label, cut.colours), cut.tiling, targets)


def loveda(root: Path) -> list[Pair]:
    folders = [root / "Val" / scene for scene in ("Rural", "Urban")]
    pictures, labels = (
        [path for folder in folders for path in find_files(folder / kind, ".png")]
        for kind in ("images_png", "masks_png")
    )
    return pair_up(pictures, labels, lambda path: path.stem, [path.stem for path in labels])


def openearthmap(root: Path) -> list[Pair]:
    """The pictures of val.txt that are there: without xBD's, 384 of 500."""
    wanted = {Path(line).stem for _, line in read_lines(root / "val.txt", "it names the pictures to evaluate")}
    pictures, labels = (find_files(root, ".tif", f"*/{kind}/*") for kind in ("images", "labels"))
    there = [path.stem for path in pictures if path.stem in wanted]
    return pair_up(pictures, labels, lambda path: path.stem, there)


LINKED = {"loveda": loveda, "openearthmap": openearthmap}
FOLDERS = dict(
    loveda="loveDA", potsdam="potsdam", vaihingen="vaihingen", isaid="iSAID", openearthmap="OpenEarthMap",
    uavid="UAVid",
)  # fmt: skip


def convert_links(label: Path, target: Path, image: Path, picture: Path, copy: bool) -> None:
    place_image(image, picture, copy)
    place_image(label, target, copy)


@program
def main():
    parser = common_arguments(__doc__)
    parser.add_argument("dataset", choices=FOLDERS)
    parser.add_argument("root", type=Path, nargs="?", help="default: the data set's folder in $CLEARCLIP_DATA")
    parser.add_argument("--copy-images", action="store_true", help="copy what is linked otherwise")
    args = parser.parse_args()
    root = args.root or data_root() / FOLDERS[args.dataset]

    if args.dataset in LINKED:
        split, convert = "val", convert_links
        jobs = [
            (label, root / "ann_dir/val" / label.name, image, root / "img_dir/val" / image.name, args.copy_images)
            for _, image, label in LINKED[args.dataset](root)
        ]
    else:
        pairs, cut = CUT[args.dataset]
        split, convert = cut.split, convert_tiles
        jobs = []
        for name, image, label in pairs(root):
            targets = tile_targets(root, cut, name, label)
            jobs.append((label, targets[-1][1], image, cut, targets))
    if not jobs:
        raise UserError(
            f"no pictures with labels in {root}: unpack the data set's archives there (datasets/README.md says where "
            "to get them)"
        )
    kept = existing(jobs, args.overwrite)
    failures = convert_all(convert, [job for job in jobs if job[1] not in kept], args.workers)
    report(failures, len(jobs), len(kept), root / "ann_dir" / split)


if __name__ == "__main__":
    main()
