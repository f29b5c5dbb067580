"""What was seen in a picture, kept so that a threshold, a picture or a file needs no network."""

import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from clearclip.segmentation import OUTPUTS, Segmentation
from clearclip.visualize import areas, hexadecimal, ignored
from clearclip.visualize.colours import blended
from clearclip.visualize.legend import GREY


@dataclass(frozen=True)
class Answer:
    """What one method made of a picture.

    Attributes:
        result: with every pixel's best class, whatever its probability.
        certainty: [H, W] float32, the probability of that class.
    """

    result: Segmentation
    certainty: np.ndarray

    @classmethod
    def of(cls, result: Segmentation) -> "Answer":
        """Of a result with scores; of these only those of the best class are kept at full size.

        One name alone has no rival, so that it is certain everywhere.
        """
        assert result.scores is not None
        count = len(result.names)
        labels = np.minimum(result.labels, count - 1).astype(np.intp)
        certainty = np.take_along_axis(result.scores, labels[None], axis=0)[0]
        if count == 1:
            certainty = np.ones_like(certainty)
        certainty[result.labels >= count] = 0  # pixels to which the method gave no class
        return cls(replace(result, scores=None), certainty)

    def at(self, threshold: float) -> Segmentation:
        """The result in which pixels that are less certain are other; without such a class they have none."""
        if threshold <= 0:
            return self.result
        nothing = 0 if self.result.everything_else else ignored(len(self.result.names))
        labels = np.where(self.certainty < threshold, nothing, self.result.labels)
        kept = labels.astype(np.uint8 if labels.max() < 256 else np.int32)
        return replace(self.result, labels=kept, about={**self.result.about, "threshold": threshold})


@dataclass(frozen=True)
class Region:
    """A class as the page shows it.

    Attributes:
        label: in the label map.
        name: its first.
        colour: as it looks upon the grey photograph, "#7aa8cf".
        area: its share of the picture, 0 to 1.
    """

    label: int
    name: str
    colour: str
    area: float


def regions(result: Segmentation) -> list[Region]:
    """All classes, the largest first, what is other or has no class last."""
    count, other = len(result.names), int(result.everything_else)
    shares = areas(result.labels, count)[:-1] / result.labels.size
    order = sorted(range(other, count), key=lambda label: -shares[label])
    found = [
        Region(label, result.names[label], hexadecimal(blended(result.colours[label])), float(shares[label]))
        for label in order
    ]
    rest = float(1 - shares[other:].sum())
    if rest > 1e-9:
        name = result.names[0] if other else "other"
        found.append(Region(0 if other else ignored(count), name, hexadecimal(np.array(GREY)), rest))
    return found


def save_zip(results: Sequence[Segmentation], path: Path, stem: str) -> None:
    """Write a ZIP of all that `Segmentation.save` makes of the first result, and of the label maps of the others.

    The files of the first begin with `stem`, those of others with `stem` and their method.
    """
    first, *others = results
    what = [kind for kind in OUTPUTS if kind != "features" or first.features is not None]
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path, "w") as archive:
        first.save(folder, what, stem)
        for other in others:
            other.save(folder, stem=f"{stem}_{other.about['method']}")
        for file in sorted(Path(folder).iterdir()):
            packed = file.suffix != ".png"  # those are packed already
            archive.write(file, file.name, zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED, 1)
