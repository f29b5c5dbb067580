"""Cityscapes: label ids to the 19 train ids that MMSegmentation reads.

<root>/gtFine/{split}/<city>/*_gtFine_labelIds.png  ->  *_gtFine_labelTrainIds.png beside it

The 19 evaluated classes become 0..18, all others 255 (ignored). The result equals what cityscapesscripts
draws from the polygons: it draws the same ones in the same order for both numberings.
"""

from pathlib import Path

import numpy as np
from _common import arguments, check_targets, convert_all, convert_png, report

from clearclip.errors import UserError, program
from clearclip.paths import data_root

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
        sources = sorted(folder.glob("*/*_gtFine_labelIds.png"))
        if not sources:
            raise UserError(
                f"no <city>/*_gtFine_labelIds.png in {folder}: unpack gtFine_trainvaltest.zip in {args.root} "
                "(datasets/README.md says where to get it)"
            )
        jobs += [(path, path.with_name(path.name.replace("Ids", "TrainIds")), table) for path in sources]

    check_targets([target for _, target, _ in jobs], args.overwrite)
    failures = convert_all(convert_png, jobs, args.workers)
    report(failures, len(jobs), args.root / "gtFine")


if __name__ == "__main__":
    main()
