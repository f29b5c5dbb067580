"""ADE20K-847: label maps and class file from the full release of ADE20K (2021_17_01).

<release>/images/ADE/{training,validation}/**/<id>.jpg, <id>.json, <id>_seg.png
  ->  <release>/annotations_detectron2/validation/<id>.tif (16 bits: 0..846, and 65535, to be ignored)
  ->  <release>/images_detectron2/validation/<id>.jpg (a symbolic link)
  ->  <release>/cls_ade847.txt

The classes are the object classes that occur both in training and in validation, in the order of the release's
own index of names; an error says so if they are not 847. Label maps that are all there already, made by another
program in another order of the classes, are kept, unless --overwrite is given; of a set that is not complete, those
that are there are compared and the others written.

The class file is read off the label maps that are there: a label takes the name that the release gives to the
pixels that have it. So it fits them whatever their order.
"""

import json
from pathlib import Path

import numpy as np
from _common import (
    check_file,
    common_arguments,
    convert_all,
    existing,
    find_files,
    place_image,
    read_image,
    report,
    run_jobs,
    write_image,
    write_lines,
)

from clearclip.errors import UserError, program
from clearclip.paths import data_root

CLASSES, IGNORED = 847, 65535
SUFFIX = "_seg.png"


def object_classes(path: Path) -> np.ndarray:
    """The release's object class of each pixel [H, W], from 1 on in its index of names; 0 is unlabelled.

    The red and green channels of <id>_seg.png hold it: red // 10 · 256 + green.
    """
    _, pixels = read_image(path)
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        raise UserError(f"{path} is not a picture of the object classes in 8-bit RGB")
    return pixels[..., 0].astype(int) // 10 * 256 + pixels[..., 1]


def occurring(path: Path) -> set[int]:
    return set(np.unique(object_classes(path)).tolist())


def convert(
    source: Path, target: Path, table: np.ndarray, source_image: Path, target_image: Path, copy: bool, write: bool
) -> None:
    """Place the image and write its label map; without `write`, see that the one that is there is the same."""
    place_image(source_image, target_image, copy)
    labels = table[object_classes(source)]
    if write:
        write_image(target, labels, "TIFF")
    elif not np.array_equal(read_image(target)[1], labels):
        raise UserError(f"{target} was made in another order of the classes, or of another picture: pass --overwrite")


def named_labels(source: Path, target: Path) -> set[tuple[int, str]]:
    """The labels in the label map `target`, each with the name of every object class that its pixels have."""
    annotation = source.with_name(source.name[: -len(SUFFIX)] + ".json")
    check_file(annotation)
    try:
        # The release's own program reads its text as Latin-1.
        objects = json.loads(annotation.read_text(encoding="latin-1"))["annotation"]["object"]
        names = {int(thing["name_ndx"]): thing["name"] for thing in objects}
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{annotation} does not name its objects as the release does ({error!r})") from error
    labels, classes = read_image(target)[1], object_classes(source)
    if labels.shape != classes.shape:
        raise UserError(f"{target} and {source} differ in size: run again with --overwrite")
    pairs = np.unique(np.stack([labels, classes])[:, labels != IGNORED], axis=1).T.tolist()
    unnamed = [index for _, index in pairs if index not in names]
    if unnamed:
        raise UserError(f"{annotation} does not name object class {unnamed[0]} of {source.name}")
    return {(label, names[index]) for label, index in pairs}


def class_lines(named: set[tuple[int, str]]) -> list[str]:
    """Lines of a class file from pairs of label and name. A line's first name is made unique."""
    by_label = dict(named)
    if len(by_label) < len(named) or sorted(by_label) != list(range(CLASSES)):
        raise UserError(
            f"the label maps have {len(by_label)} labels with {len({name for _, name in named})} names, not "
            f"{CLASSES} with one each: run again with --overwrite"
        )
    lines, taken = [], set()
    for label in range(CLASSES):
        synonyms = list(dict.fromkeys(name.strip() for name in by_label[label].split(",") if name.strip()))
        # Two classes may share their first name; another synonym stands for the second, if it has one.
        free = [name for name in synonyms if name not in taken]
        first = free[0] if free else f"{synonyms[0]} ({label})"
        taken.add(first)
        lines.append(", ".join([first, *(name for name in synonyms if name != first and free)]))
    return lines


def common_classes(sources: dict[str, list[Path]], folder: Path, workers: int) -> np.ndarray:
    """Table from the release's object classes to labels 0..846; `IGNORED` where a class is not in both splits."""
    found = {
        split: set().union(*run_jobs(occurring, [(path,) for path in paths], workers))
        for split, paths in sources.items()
    }
    common = sorted(found["training"] & found["validation"] - {0})
    if len(common) != CLASSES:
        raise UserError(
            f"{len(common)} object classes occur both in training and in validation of {folder}, not {CLASSES}: "
            "unpack the whole release 2021_17_01"
        )
    table = np.full(26 * 256, IGNORED, np.uint16)  # red is at most 255
    table[common] = np.arange(CLASSES)
    return table


@program
def main():
    parser = common_arguments(__doc__)
    release = data_root() / "ade" / "ADE20K_2021_17_01"
    parser.add_argument("release", type=Path, nargs="?", default=release, help="default: %(default)s")
    parser.add_argument("--copy-images", action="store_true", help="copy the images, do not link them")
    args = parser.parse_args()

    folder = args.release / "images" / "ADE"
    sources = {split: find_files(folder / split, SUFFIX, "**/*") for split in ("training", "validation")}
    if not sources["validation"]:
        raise UserError(
            f"no <id>{SUFFIX} in {folder / 'validation'}: unpack ADE20K_2021_17_01 in {args.release.parent}"
        )
    maps, images = (args.release / name / "validation" for name in ("annotations_detectron2", "images_detectron2"))
    names = {source: source.name[: -len(SUFFIX)] for source in sources["validation"]}
    pairs = [(source, maps / f"{name}.tif") for source, name in names.items()]
    kept = existing(pairs, args.overwrite)
    if len(kept) < len(pairs):
        table = common_classes(sources, folder, args.workers)
        jobs = []
        for source, target in pairs:
            image = f"{names[source]}.jpg"
            write = target not in kept
            jobs.append((source, target, table, source.with_name(image), images / image, args.copy_images, write))
        report(convert_all(convert, jobs, args.workers), len(jobs), len(kept), maps)
    named = set().union(*run_jobs(named_labels, pairs, args.workers))
    path = args.release / "cls_ade847.txt"
    write_lines(path, class_lines(named))
    print(f"{CLASSES} names written to {path}")


if __name__ == "__main__":
    main()
