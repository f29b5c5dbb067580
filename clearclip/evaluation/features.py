"""Kept patch features in place of the network: which belong to the images of a run, and that they are what it needs."""

import hashlib
from pathlib import Path
from typing import Any

from clearclip.errors import UserError
from clearclip.evaluation.passes import Benchmark
from clearclip.evaluation.run import Run
from clearclip.features import Kept, KeptFolder
from clearclip.keeping import check_kept
from clearclip.segmenter import Segmenter

KeptImages = dict[str, Kept]  # by sample


def find_features(run: Run, segmenter: Segmenter, benchmark: Benchmark, made: dict[str, Any]) -> KeptImages | None:
    """What is kept of each image of a run whose `model.features` names a folder; None where it names none.

    `made` holds the folders that were opened for the runs before. Raises UserError where an image is not there, and
    where features were kept with other settings.
    """
    folder = run.config.model.get("features")
    if not folder:
        return None
    check_kept(segmenter)
    key = f"features {folder}"
    if key not in made:
        if not Path(folder).is_dir():
            raise UserError(f"features {folder}: there is no such folder; clearclip features makes one")
        made[key] = KeptFolder(folder)
    kept: KeptFolder = made[key]
    found = {sample: kept.find(benchmark.path(sample)) for sample in benchmark.samples}
    if missing := [benchmark.path(sample) for sample, one in found.items() if one is None]:
        raise UserError(
            f"{folder} has no features of {len(missing)} images, such as {missing[0]}: keep them by clearclip features "
            f"--config {run.path}"
        )
    images = {sample: one for sample, one in found.items() if one is not None}
    settings = segmenter.feature_settings
    for one in images.values():
        one.note.check(settings, str(one.path))
    return images


def digest(kept: KeptImages) -> str:
    """SHA-256 of all features of a run: what is counted from others is kept apart."""
    return hashlib.sha256("".join(sorted(one.digest for one in kept.values())).encode()).hexdigest()
