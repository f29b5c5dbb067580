"""COCO-Object: the 80 things of COCO-Stuff 164k as 1..80, everything else as background 0.

<stuff>/annotations/{split}2017/<id>.png  ->  <out>/annotations/{split}2017/<id>_instanceTrainIds.png
<stuff>/images/{split}2017/<id>.jpg       ->  <out>/images/{split}2017/<id>.jpg (a symbolic link)

Where there is no raw <id>.png, <id>_labelTrainIds.png is read instead; both give the same map. Unlabelled
pixels (255) become background too and are not ignored: so the published protocol has it (GroupViT, TCL and
all that compare with them).
"""

from pathlib import Path

import numpy as np
from _common import arguments, convert_all, convert_png, existing, find_files, place_image, report
from cvt_coco_stuff import add_first_id, first_id, raw_maps, raw_to_train

from clearclip.errors import UserError, program
from clearclip.paths import data_root

TRAIN_SUFFIX = "_labelTrainIds.png"


def train_to_object() -> np.ndarray:
    """Table [256] from COCO-Stuff train ids to COCO-Object ids; -1 where there is no train id."""
    table = np.full(256, -1)
    table[:80] = np.arange(1, 81)
    table[80:171] = 0
    table[255] = 0
    return table


def raw_to_object(first: int = 0) -> np.ndarray:
    """Table [256] from COCO-Stuff raw ids, which begin at `first`, to COCO-Object ids; -1 where there is no raw id."""
    train = raw_to_train(first)
    return np.where(train < 0, -1, train_to_object()[train])


def convert(source, target, table, source_image, target_image, copy, write):
    place_image(source_image, target_image, copy)
    if write:
        convert_png(source, target, table)


@program
def main():
    parser = arguments(__doc__, ["val"])
    stuff, out = data_root() / "coco_stuff164k", data_root() / "coco_object"
    parser.add_argument("stuff", type=Path, nargs="?", default=stuff, help="default: %(default)s")
    parser.add_argument("-o", "--out", type=Path, default=out, help="default: %(default)s")
    parser.add_argument("--copy-images", action="store_true", help="copy the images, do not link them")
    add_first_id(parser)
    args = parser.parse_args()

    pairs = []
    for split in args.splits:
        folder = args.stuff / "annotations" / f"{split}2017"
        sources = {path.name[: -len(TRAIN_SUFFIX)]: path for path in find_files(folder, TRAIN_SUFFIX)}
        sources |= {path.stem: path for path in raw_maps(folder)}
        if not sources:
            raise UserError(
                f"no <id>.png and no <id>{TRAIN_SUFFIX} in {folder}: "
                f"unpack stuffthingmaps_trainval2017.zip in {folder.parent} "
                "(datasets/README.md says where to get it)"
            )
        pairs += sorted(sources.items())

    raw = [path for name, path in pairs if path.stem == name]
    from_raw, from_train = raw_to_object(first_id(args, raw) if raw else 0), train_to_object()
    jobs = []
    for name, path in pairs:
        split = path.parent.name
        target = args.out / "annotations" / split / f"{name}_instanceTrainIds.png"
        image = Path("images", split, f"{name}.jpg")
        table = from_raw if path.stem == name else from_train
        jobs.append((path, target, table, args.stuff / image, args.out / image, args.copy_images))

    missing = [source for *_, source, target, _ in jobs if not (source.exists() or target.exists())]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(jobs)} images are missing, the first is {missing[0]}: "
            f"unpack {missing[0].parent.name}.zip in {missing[0].parents[1]}"
        )
    kept = existing(jobs, args.overwrite)
    failures = convert_all(convert, [(*job, job[1] not in kept) for job in jobs], args.workers)
    report(failures, len(jobs), len(kept), args.out / "annotations")


if __name__ == "__main__":
    main()
