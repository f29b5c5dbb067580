"""Differences of two runs on the same images, with the paired intervals of their records."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clearclip.evaluation.confusion import Confusions
from clearclip.evaluation.records import Records
from clearclip.evaluation.results.record import Result
from clearclip.evaluation.statistics import paired

# What two results must share, besides the images, for their difference to be one of methods.
ALIKE = (
    "dataset",
    "protocol",
    "backbone",
    "pretrained",
    "weights_hash",
    "precision",
    "images",
    "names_hash",
    "settings",
)


def comparable(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether nothing but the method, and its text, tells two results apart."""
    return all(one.get(key) == other.get(key) for key in ALIKE)


def recorded_areas(folder: Path, key: str, samples: Sequence[str]) -> np.ndarray:
    """Areas int64 [N, 4, C] of a run's images, in the order of `samples`, from all files of a folder of records.

    Raises KeyError where one has no record.
    """
    parts: list[Confusions] = []
    left = set(samples)
    for path in sorted(folder.glob("*.sqlite")):
        with Records.open(path, readonly=True) as records:
            for run in records.runs():
                if run.key == key and (here := sorted(run.done() & left)):
                    parts.append(run.confusions(here))
                    left -= set(here)
    if left:
        raise KeyError(f"run {key[:12]} has no record of {sorted(left)[0]}")
    return Confusions.join(parts, samples).areas()


def difference(result: Result, reference: Result, samples: Sequence[str], folder: Path) -> list[float]:
    """[difference of mIoU, low, high] of two results, in percentage points: a 95 % interval over the same images."""
    own, its = (recorded_areas(folder, one["record"], samples) for one in (result, reference))
    gain = paired(own, its).mIoU
    return [gain.value, gain.low, gain.high]
