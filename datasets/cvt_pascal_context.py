"""Pascal Context: the release's maps of 459 classes to the benchmark's background and 59 classes.

<release>/trainval/<id>.mat  ->  <voc>/SegmentationClassContext/<id>.png
<voc>/ImageSets/Main/{split}.txt  ->  <voc>/ImageSets/SegmentationContext/{split}.txt (images with labels)

0 is background (any class but the 59), 1..59 are the classes in MMSegmentation's order. An image list that
exists is kept, unless --overwrite is given; one that does not is written when all label maps are there.

--classes 459 writes SegmentationClassContext459 instead: 16-bit PNGs with 0..458 for the release's ids 1..459
and 65535, to be ignored, for unlabelled pixels; and cls_context459.txt, the release's names in that order.
"""

from pathlib import Path

import numpy as np
import scipy.io
from _common import (
    arguments,
    check_file,
    convert_all,
    existing,
    find_files,
    read_lines,
    report,
    write_image,
    write_lines,
)

from clearclip.errors import UserError, program
from clearclip.paths import data_root

CLASSES = """
    aeroplane bag bed bedclothes bench bicycle bird boat book bottle building bus cabinet car cat ceiling
    chair cloth computer cow cup curtain dog door fence floor flower food grass ground horse keyboard light
    motorbike mountain mouse person plate platform pottedplant road rock sheep shelves sidewalk sign sky snow
    sofa table track train tree truck tvmonitor wall water window wood
""".split()  # noqa: SIM905


def read_names(path: Path) -> dict[str, int]:
    """The release's labels.txt, lines of `id: name`, as {name: id}."""
    names = {}
    for number, line in read_lines(path, "get labels.txt from Pascal Context's page or name it with --labels"):
        label, colon, name = (part.strip() for part in line.partition(":"))
        if not (colon and label.isdecimal() and name):
            raise UserError(f"line {number} of {path} is not of the form `id: name`")
        if name in names or int(label) in names.values():
            raise UserError(f"line {number} of {path} has the id or the name of an earlier line: write each once")
        names[name] = int(label)
    if not names:
        raise UserError(f"{path} is empty: it should be the release's labels.txt")
    return names


def read_split(path: Path) -> list[str]:
    """The images that VOC's image list `path` names, each once."""
    names = {}
    for number, line in read_lines(path, "unpack VOC2010's archive, or name its folder with --voc"):
        if len(line.split()) > 1:
            raise UserError(f"line {number} of {path} is not the name of one image: {line!r}")
        names[line] = number
    return list(names)


def benchmark_table(names: dict[str, int], path: Path) -> np.ndarray:
    """Table [largest id + 1] from the release's ids to 0 and 1..59."""
    missing = [name for name in CLASSES if name not in names]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: it should be the labels.txt of the 459 classes")
    table = np.zeros(max(names.values()) + 1, np.uint8)
    table[[names[name] for name in CLASSES]] = np.arange(1, 60)
    return table


def full_table(names: dict[str, int], path: Path) -> np.ndarray:
    """Table [460] from the release's ids 1..459 to 0..458, and from 0 to 65535."""
    if sorted(names.values()) != list(range(1, 460)):
        raise UserError(f"{path} does not number its classes 1..459: it should be the release's labels.txt")
    return np.arange(-1, 459).astype(np.uint16)


def voc_palette() -> list[int]:
    """VOC's colours: the label's bits dealt to red, green and blue in turn, each filled from its top bit."""
    palette = []
    for label in range(256):
        for channel in range(3):
            bits = [label >> (3 * turn + channel) & 1 for turn in range(3)]
            palette.append(bits[0] << 7 | bits[1] << 6 | bits[2] << 5)
    return palette


def convert(source: Path, target: Path, table: np.ndarray, palette: list[int] | None) -> None:
    check_file(source)
    try:
        ids = scipy.io.loadmat(source)["LabelMap"]  # H W
    except KeyError:
        raise UserError(f"{source} has no variable LabelMap") from None
    except MemoryError:
        raise
    except Exception as error:  # what a damaged file raises has no common base in SciPy
        raise UserError(f"cannot read {source} ({error})") from error
    if ids.ndim != 2 or not np.isin(ids, np.arange(len(table))).all():
        raise UserError(f"LabelMap of {source} is not a map of labels 0..{len(table) - 1}")
    write_image(target, table[ids.astype(int)], palette=palette)


@program
def main():
    parser = arguments(__doc__, ["train", "val"])
    voc = data_root() / "VOCdevkit" / "VOC2010"
    parser.add_argument(
        "release",
        type=Path,
        nargs="?",
        default=voc,
        help="has trainval/ and labels.txt (default: %(default)s)",
    )
    parser.add_argument("--voc", type=Path, default=voc, help="default: %(default)s")
    parser.add_argument("--labels", type=Path, help="default: labels.txt in the release")
    parser.add_argument("--classes", type=int, choices=[60, 459], default=60, help="default: %(default)s")
    args = parser.parse_args()

    labels = args.labels or args.release / "labels.txt"
    names = read_names(labels)
    if args.classes == 60:
        folder, table, palette = "SegmentationClassContext", benchmark_table(names, labels), voc_palette()
    else:
        folder, table, palette = "SegmentationClassContext459", full_table(names, labels), None

    sources = {path.stem: path for path in find_files(args.release / "trainval", ".mat")}
    if not sources:
        raise UserError(
            f"no .mat file in {args.release / 'trainval'}: unpack Pascal Context's trainval.tar.gz in "
            f"{args.release} (datasets/README.md says where to get it)"
        )
    images = {}
    for split in args.splits:
        path = args.voc / "ImageSets" / "Main" / f"{split}.txt"
        images[split] = [name for name in read_split(path) if name in sources]
        if not images[split]:
            raise UserError(f"{args.release / 'trainval'} has no labels for any image in {path}")

    targets = {name: args.voc / folder / f"{name}.png" for split in images for name in images[split]}
    jobs = [(sources[name], target, table, palette) for name, target in targets.items()]
    kept = existing(jobs, args.overwrite)
    failures = convert_all(convert, [job for job in jobs if job[1] not in kept], args.workers)
    if args.classes == 459:
        write_lines(args.voc / "cls_context459.txt", sorted(names, key=names.get))
    report(failures, len(jobs), len(kept), args.voc / folder)

    for split in images:
        path = args.voc / "ImageSets" / "SegmentationContext" / f"{split}.txt"
        if path.exists() and not args.overwrite:
            print(f"{path} kept as it was")
        else:
            write_lines(path, images[split])


if __name__ == "__main__":
    main()
