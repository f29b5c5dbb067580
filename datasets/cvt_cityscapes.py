"""Cityscapes: label ids to the 19 train ids that MMSegmentation reads.

<root>/gtFine/{split}/<city>/*_gtFine_labelIds.png  ->  *_gtFine_labelTrainIds.png beside it

The 19 evaluated classes become 0..18, all others 255 (ignored). The result equals what cityscapesscripts
draws from the polygons: it draws the same ones in the same order for both numberings.
"""

from pathlib import Path

import numpy as np
from _common import arguments, convert_all, convert_png, existing, find_files, report

from clearclip.errors import UserError, program
from clearclip.paths import data_root

SUFFIX, TRAIN_SUFFIX = "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"
EVALUATED = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]  # road … bicycle


def label_to_train() -> np.ndarray:
    """Table [256] from label ids 0..33 to train ids; -1 where there is no label id."""
    table = np.full(256, -1)
    table[:34] = 255
    table[EVALUATED] = np.arange(19)
    return table


@program
def main():
    parser = arguments(__doc__, ["val"])
    default = data_root() / "cityscapes"
    parser.add_argument("root", type=Path, nargs="?", default=default, help="default: %(default)s")
    args = parser.parse_args()

    table, jobs = label_to_train(), []
    for split in args.splits:
        folder = args.root / "gtFine" / split
        sources = find_files(folder, SUFFIX, "*/*")
        if not sources:
            raise UserError(
                f"no <city>/*{SUFFIX} in {folder}: unpack gtFine_trainvaltest.zip in {args.root} "
                "(datasets/README.md says where to get it)"
            )
        jobs += [(path, path.with_name(path.name[: -len(SUFFIX)] + TRAIN_SUFFIX), table) for path in sources]

    kept = existing(jobs, args.overwrite)
    failures = convert_all(convert_png, [job for job in jobs if job[1] not in kept], args.workers)
    report(failures, len(jobs), len(kept), args.root / "gtFine")


if __name__ == "__main__":
    main()
