"""COCO-Stuff 164k: raw pixel maps to the 171 train ids that MMSegmentation reads.

<root>/annotations/{split}2017/<id>.png  ->  <root>/annotations/{split}2017/<id>_labelTrainIds.png

Raw ids 0..181 leave out eleven that no pixel has; the other 171 are renumbered 0..170 in their order
(0..79 things, 80..170 stuff). 255, unlabelled, stays 255 and is ignored in evaluation.
"""

from pathlib import Path

import numpy as np
from _common import arguments, check_targets, convert_all, convert_png, report

from clearclip.errors import UserError, program
from clearclip.paths import data_root

UNUSED = [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]  # street sign, hat, shoe …: named, never annotated


def raw_to_train() -> np.ndarray:
    """Table [256] from raw ids to train ids; -1 where there is no raw id."""
    table = np.full(256, -1)
    table[[raw for raw in range(182) if raw not in UNUSED]] = np.arange(171)
    table[[*UNUSED, 255]] = 255
    return table


def raw_maps(folder: Path) -> list[Path]:
    """The raw maps in `folder`: their names are bare numbers, those of derived maps have a suffix."""
    return sorted(path for path in folder.glob("*.png") if path.stem.isdigit())


@program
def main():
    parser = arguments(__doc__, ["val"])
    default = data_root() / "coco_stuff164k"
    parser.add_argument("root", type=Path, nargs="?", default=default, help="default: %(default)s")
    args = parser.parse_args()

    table, jobs = raw_to_train(), []
    for split in args.splits:
        folder = args.root / "annotations" / f"{split}2017"
        sources = raw_maps(folder)
        if not sources:
            raise UserError(
                f"no <id>.png in {folder}: unpack stuffthingmaps_trainval2017.zip in {folder.parent} "
                "(datasets/README.md says where to get it)"
            )
        jobs += [(path, path.with_name(f"{path.stem}_labelTrainIds.png"), table) for path in sources]

    check_targets([target for _, target, _ in jobs], args.overwrite)
    failures = convert_all(convert_png, jobs, args.workers)
    report(failures, len(jobs), args.root / "annotations")


if __name__ == "__main__":
    main()
