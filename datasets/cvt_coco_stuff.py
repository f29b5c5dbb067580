"""COCO-Stuff 164k: raw pixel maps to the 171 train ids that MMSegmentation reads.

<root>/annotations/{split}2017/<id>.png  ->  <root>/annotations/{split}2017/<id>_labelTrainIds.png

Raw ids 0..181 leave out eleven that no pixel has; the other 171 are renumbered 0..170 in their order
(0..79 things, 80..170 stuff). 255, unlabelled, stays 255 and is ignored in evaluation.

COCO-Stuff also comes numbered from 1, with 0 for unlabelled. Which it is shows in the ids that no pixel of the other
kind has; where no map shows it, say it with --first-id.
"""

import argparse
from pathlib import Path

import numpy as np
from _common import arguments, convert_all, convert_png, existing, find_files, read_ids, report

from clearclip.errors import UserError, program
from clearclip.paths import data_root

UNUSED = [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]  # street sign, hat, shoe …: named, never annotated


def raw_to_train(first: int = 0) -> np.ndarray:
    """Table [256] from raw ids, which begin at `first`, to train ids; -1 where no pixel has the id."""
    table = np.full(256, -1)
    table[[first + raw for raw in range(182) if raw not in UNUSED]] = np.arange(171)
    table[0 if first else 255] = 255
    return table


def raw_maps(folder: Path) -> list[Path]:
    """The raw maps in `folder`: their names are bare numbers, those of derived maps have a suffix."""
    return [path for path in find_files(folder, ".png") if path.stem.isdecimal()]


def find_first_id(paths: list[Path]) -> int:
    """The id of the first class, 0 or 1, read off the first map all of whose ids fit one numbering only."""
    known = {first: raw_to_train(first) >= 0 for first in (0, 1)}
    undecided = 0
    for path in paths:
        try:
            ids = np.unique(read_ids(path))
        except UserError:
            continue  # it is named when it is converted
        fitting = [first for first, valid in known.items() if valid[ids].all()]
        if len(fitting) == 1:
            return fitting[0]
        undecided += len(fitting) == 2
    if undecided:
        raise UserError(
            f"none of the {undecided} maps in {paths[0].parent} shows how the classes are numbered: pass --first-id 0 "
            "(255 is unlabelled, as in stuffthingmaps_trainval2017.zip) or --first-id 1 (0 is unlabelled)"
        )
    return 0


def add_first_id(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--first-id", type=int, choices=[0, 1], help="the raw id of `person`, the first class (default: as it shows)"
    )


def first_id(args: argparse.Namespace, sources: list[Path]) -> int:
    """What --first-id says or else the maps `sources` show; a line tells of the unusual numbering."""
    first = find_first_id(sources) if args.first_id is None else args.first_id
    if first:
        print(f"the maps in {sources[0].parent} are numbered from 1, 0 is unlabelled")
    return first


@program
def main():
    parser = arguments(__doc__, ["val"])
    default = data_root() / "coco_stuff164k"
    parser.add_argument("root", type=Path, nargs="?", default=default, help="default: %(default)s")
    add_first_id(parser)
    args = parser.parse_args()

    sources = []
    for split in args.splits:
        folder = args.root / "annotations" / f"{split}2017"
        maps = raw_maps(folder)
        if not maps:
            raise UserError(
                f"no <id>.png in {folder}: unpack stuffthingmaps_trainval2017.zip in {folder.parent} "
                "(datasets/README.md says where to get it)"
            )
        sources += maps

    table = raw_to_train(first_id(args, sources))
    jobs = [(path, path.with_name(f"{path.stem}_labelTrainIds.png"), table) for path in sources]
    kept = existing(jobs, args.overwrite)
    failures = convert_all(convert_png, [job for job in jobs if job[1] not in kept], args.workers)
    report(failures, len(jobs), len(kept), args.root / "annotations")


if __name__ == "__main__":
    main()
