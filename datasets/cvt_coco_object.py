"""COCO-Object: the 80 things of COCO-Stuff 164k as 1..80, everything else as background 0.

<stuff>/annotations/{split}2017/<id>.png  ->  <out>/annotations/{split}2017/<id>_instanceTrainIds.png
<stuff>/images/{split}2017/<id>.jpg       ->  <out>/images/{split}2017/<id>.jpg (a symbolic link)

Where there is no raw <id>.png, <id>_labelTrainIds.png is read instead; both give the same map. Unlabelled
pixels (255) become background too and are not ignored: so the published protocol has it (GroupViT, TCL and
all that compare with them).
"""

import os
import shutil
from pathlib import Path

import numpy as np
from _common import arguments, check_targets, convert_all, convert_png, report
from cvt_coco_stuff import raw_maps, raw_to_train

from clearclip.errors import UserError, program
from clearclip.paths import atomic_write, data_root

TRAIN_SUFFIX = "_labelTrainIds.png"


def train_to_object() -> np.ndarray:
    """Table [256] from COCO-Stuff train ids to COCO-Object ids; -1 where there is no train id."""
    table = np.full(256, -1)
    table[:80] = np.arange(1, 81)
    table[80:171] = 0
    table[255] = 0
    return table


def raw_to_object() -> np.ndarray:
    """Table [256] from COCO-Stuff raw ids to COCO-Object ids; -1 where there is no raw id."""
    train = raw_to_train()
    return np.where(train < 0, -1, train_to_object()[train])


def place_image(source: Path, target: Path, copy: bool) -> None:
    """Link `target` to `source`, or copy it. An image that is there is left, but a copy replaces a link."""
    if target.exists() and not (copy and target.is_symlink()):
        return
    if copy:
        with atomic_write(target) as temporary:
            shutil.copyfile(source, temporary)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # a link that leads nowhere
    try:
        # Relative, so that the data folder can be moved as a whole.
        target.symlink_to(os.path.relpath(source.resolve(), target.parent.resolve()))
    except OSError as error:
        raise UserError(f"cannot link {target} ({error}): pass --copy-images") from error


def convert(source, target, table, source_image, target_image, copy):
    convert_png(source, target, table)
    place_image(source_image, target_image, copy)


@program
def main():
    parser = arguments(__doc__, ["val"])
    stuff, out = data_root() / "coco_stuff164k", data_root() / "coco_object"
    parser.add_argument("stuff", type=Path, nargs="?", default=stuff, help="default: %(default)s")
    parser.add_argument("-o", "--out", type=Path, default=out, help="default: %(default)s")
    parser.add_argument("--copy-images", action="store_true", help="copy the images, do not link them")
    args = parser.parse_args()

    from_raw, from_train, jobs = raw_to_object(), train_to_object(), []
    for split in args.splits:
        folder = args.stuff / "annotations" / f"{split}2017"
        sources = {path.name.removesuffix(TRAIN_SUFFIX): path for path in folder.glob(f"*{TRAIN_SUFFIX}")}
        sources |= {path.stem: path for path in raw_maps(folder)}
        if not sources:
            raise UserError(
                f"no <id>.png and no <id>{TRAIN_SUFFIX} in {folder}: "
                f"unpack stuffthingmaps_trainval2017.zip in {folder.parent} "
                "(datasets/README.md says where to get it)"
            )
        for name, path in sorted(sources.items()):
            target = args.out / "annotations" / folder.name / f"{name}_instanceTrainIds.png"
            table = from_train if path.name.endswith(TRAIN_SUFFIX) else from_raw
            image = Path("images", folder.name, f"{name}.jpg")
            jobs.append((path, target, table, args.stuff / image, args.out / image, args.copy_images))

    check_targets([target for _, target, *_ in jobs], args.overwrite)
    missing = [source for *_, source, target, _ in jobs if not (source.exists() or target.exists())]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(jobs)} images are missing, the first is {missing[0]}: "
            f"unpack {missing[0].parent.name}.zip in {missing[0].parents[1]}"
        )
    failures = convert_all(convert, jobs, args.workers)
    report(failures, len(jobs), args.out / "annotations")


if __name__ == "__main__":
    main()
