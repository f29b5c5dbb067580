"""What a run of a store of records says of itself: its method, its benchmark's size, a result without a result.json."""

from typing import Any

from clearclip.config import find_config, read_config
from clearclip.errors import UserError
from clearclip.evaluation.records import Run, identity_key
from clearclip.evaluation.results import tables
from clearclip.evaluation.statistics import bootstrap
from clearclip.methods import METHODS
from clearclip.refine import REFINEMENTS


def method(run: Run) -> str:
    """The method and its refinements, with the options that are not their defaults."""
    parts = []
    for index, (name, options) in enumerate(run.identity.get("method", [])):
        registry = REFINEMENTS if index else METHODS
        defaults = dict(registry.parse(name).settings) if name in registry else {}
        given = [f"{key}={value}" for key, value in options.items() if defaults.get(key, value is None) != value]
        parts.append(f"{name}:{','.join(given)}" if given else name)
    return "+".join(parts)


def whole(run: Run) -> int | None:
    """How many images the benchmark of a run has; None where no config says so."""
    images = _benchmark(run).get("images")
    return images if isinstance(images, int) else None


def result_of(run: Run) -> tables.Run | None:
    """What a result would say of a run, as far as its records know; None where no image is counted.

    Nothing published: what was altered of its protocol is not in the records.
    """
    images = sorted(run.done())
    if not images:
        return None
    estimate = bootstrap(run.areas(images))
    weights = run.identity.get("weights")
    weights = weights if isinstance(weights, dict) else {"hash": weights or ""}
    return dict(
        date=run.created,
        method=method(run),
        backbone=weights.get("backbone"),
        pretrained=str(weights.get("hash", ""))[:8],
        weights_hash=weights.get("hash"),
        dataset=str(run.identity.get("benchmark", "")),
        protocol=str(_benchmark(run).get("protocol", "")),
        vocabulary="",
        text=str(run.identity.get("text", ""))[:8],
        names_hash=identity_key(run.identity.get("names", [])),
        precision=run.identity.get("precision"),
        device=run.identity.get("device"),
        settings=run.identity.get("protocol", {}),
        mIoU=estimate.mIoU.value,
        aAcc=estimate.aAcc.value,
        interval=estimate.mIoU.half_width,
        per_class_IoU={name: iou.value for name, iou in zip(run.classes, estimate.IoU)},
        images=len(images),
        benchmark_images=whole(run),
        published=None,
        versions=run.meta.get("versions", {}),
        config=run.meta.get("config"),
        record=run.key,
    )


def _benchmark(run: Run) -> dict[str, Any]:
    """The part `benchmark` of the config that describes the benchmark of a run; empty where there is none."""
    for name in (run.meta.get("config"), run.identity.get("benchmark")):
        try:
            found = read_config(find_config(str(name))).get("benchmark")
        except UserError:
            continue
        if isinstance(found, dict):
            return dict(found)
    return {}
