"""What `clearclip segment` writes, and that no file of it is in the way of another."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearclip.errors import UserError
from clearclip.paths import check_writable

if TYPE_CHECKING:
    from PIL import Image

    from clearclip.segmentation import Segmentation

COCO = "coco.json"  # one for all pictures
SHEET_WIDTH = 2400  # pixels of methods side by side


def stems(pictures: Sequence[Path]) -> list[str]:
    """What the files of each picture begin with: its name; pictures of one name get a number."""
    names = [picture.stem for picture in pictures]
    folded = [name.casefold() for name in names]  # some file systems take A and a for the same
    return [
        name if folded.count(fold) == 1 else f"{number}-{name}"
        for number, (name, fold) in enumerate(zip(names, folded), 1)
    ]


@dataclass
class Outputs:
    """The files of all pictures.

    Attributes:
        folder: where they go.
        what: kinds, as `Segmentation.save` has them; "coco" is one file for all.
        arrays: "safetensors" or "npy".
        coco: what `coco.json` will hold.
    """

    folder: Path
    what: Sequence[str]
    arrays: str = "safetensors"
    coco: dict[str, Any] = field(default_factory=dict)

    def check(self, pictures: Sequence[Path], names: Sequence[str], everything_else: bool) -> None:
        """Raise UserError for a kind that cannot be written, and for a file that cannot be, that is itself a picture to
        read, or that two pictures share."""
        from clearclip.segmentation import output_files

        inputs, seen = {picture.resolve() for picture in pictures}, set()
        for stem in stems(pictures):
            files = output_files(stem, self.what, names, everything_else, self.arrays)
            files |= {"coco": [COCO]} if "coco" in files else {}
            for kind, of_kind in files.items():
                for target in (self.folder / name for name in of_kind):
                    check_writable(target)
                    if target.resolve() in inputs:
                        raise UserError(f"{target} would be written over one of the pictures; give another --output")
                    if target in seen and kind != "coco":
                        raise UserError(f"{target} would be written for two pictures; rename one of them")
                    seen.add(target)

    def save(self, stem: str, result: "Segmentation", others: Mapping[str, "Segmentation"]) -> list[Path]:
        """Write the files of one picture, but for `coco.json`; with `others`, by method, the overlay is a sheet."""
        mine = [kind for kind in self.what if kind != "coco" and not (kind == "overlay" and others)]
        paths = [path for found in result.save(self.folder, mine, stem, self.arrays).values() for path in found]
        if "overlay" in self.what and others:
            from clearclip.visualize import save_picture

            target = self.folder / f"{stem}_overlay.png"
            save_picture(side_by_side({**others, str(result.about["method"]): result}), target)
            paths.append(target)
        if "coco" in self.what:
            self._collect(result)
        return paths

    def _collect(self, result: "Segmentation") -> None:
        first = len(self.coco.get("annotations", ())) + 1
        one = result.to_coco(len(self.coco.get("images", ())) + 1, first)
        if not self.coco:
            self.coco = one
        else:
            for key in ("images", "annotations"):
                self.coco[key] += one[key]

    def finish(self) -> list[Path]:
        """Write what is of all pictures."""
        if not self.coco:
            return []
        from clearclip.segmentation import save_json

        save_json(self.folder / COCO, self.coco)
        return [self.folder / COCO]


def side_by_side(results: Mapping[str, "Segmentation"]) -> "Image.Image":
    """The photograph and the overlays of several methods, by title, in rows of three at most."""
    from clearclip.visualize import sheet
    from clearclip.visualize.canvas import shown_shape, shrink
    from clearclip.visualize.sheet import columns_of

    image = next(iter(results.values())).image
    columns = columns_of(len(results) + 1)
    height, width = image.shape[:2]
    side = max(1, round(max(1.0, height / width) * SHEET_WIDTH / columns))
    overlays = [(title, one.overlay(columns=columns, max_side=side)) for title, one in results.items()]
    return sheet([[("photograph", shrink(image, shown_shape(image.shape, side))), *overlays]])


def in_words(areas: Mapping[str, float]) -> str:
    """Shares, the largest first: "cat 60%, grass 40%"."""
    return ", ".join(f"{name} {share:.0%}" for name, share in areas.items())


def kinds(text: Iterable[str]) -> list[str]:
    """The kinds that `--save labels,heat json` names, each once."""
    return list(dict.fromkeys(kind.strip() for part in text for kind in part.split(",") if kind.strip()))
