"""The metrics of a config, for a pass, which counts before any metric is asked.

`ClassIoUMetric` reads the counts that records hold. Any other metric of MMEngine's sees each image when it is counted;
what it makes of the image is kept with its record, so that it survives a stop as the counts do.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import clearclip.evaluation.mmseg  # noqa: F401, before mmseg is imported

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.structures import PixelData
from mmseg.registry import METRICS
from mmseg.structures import SegDataSample
from torch import Tensor
from torch.utils.data import DataLoader

from clearclip.errors import UserError
from clearclip.evaluation.confusion import Confusions
from clearclip.evaluation.datasets import building
from clearclip.evaluation.run import SCORES, Run
from clearclip.evaluation.segmentor import ClassIoUMetric

TAGS = ("tuple", "tensor", "array")  # of what JSON has no word for


class Evaluators:
    """The metrics that a run's `test_evaluator`, one or a list, asks for.

    Raises UserError where a metric cannot be built, or where not exactly one is a `ClassIoUMetric`.

    Attributes:
        ignore_index: the label that counts nowhere.
        settings: of the metrics that see each image.
    """

    def __init__(self, run: Run, metainfo: Mapping[str, Any]):
        given = run.config.test_evaluator
        settings = list(given) if isinstance(given, list | tuple) else [given]
        with building(run):
            if not all(isinstance(one, dict) for one in settings):
                raise TypeError(f"test_evaluator must be a dict or a list of dicts, not {given!r}")
            metrics = [METRICS.build({**one, "_scope_": "mmseg"}) for one in settings]
        for metric in metrics:
            metric.dataset_meta = metainfo
        main = [metric for metric in metrics if isinstance(metric, ClassIoUMetric)]
        if len(main) != 1:
            raise UserError(
                f"{run.path}: test_evaluator has {len(main)} metrics of type ClassIoUMetric, from which results are "
                "made; give one, and others beside it"
            )
        self.main: ClassIoUMetric = main[0]
        self.ignore_index: int = self.main.ignore_index
        self.others: list[BaseMetric] = [metric for metric in metrics if metric is not self.main]
        self.settings = [one for one, metric in zip(settings, metrics) if metric is not self.main]

    def see(self, inputs: Tensor, sample: SegDataSample, labels: Tensor) -> list[list] | None:
        """What the other metrics make of one image, one list each, as JSON can hold it; None where there are none.

        `inputs` is the image as it was loaded, `labels` [H, W] what is predicted. Raises UserError for a metric whose
        results are of a kind that cannot be kept.
        """
        if not self.others:
            return None
        seen = sample.clone()
        seen.set_data({"pred_sem_seg": PixelData(data=labels[None])})
        return [self._see(metric, inputs, seen) for metric in self.others]

    def _see(self, metric: BaseMetric, inputs: Tensor, sample: SegDataSample) -> list:
        metric.results.clear()
        metric.process({"inputs": [inputs], "data_samples": [sample]}, [sample.to_dict()])
        try:
            return [plain(result) for result in metric.results]
        except TypeError as error:
            raise UserError(
                f"metric {type(metric).__name__} keeps {error} of an image, which a record cannot hold; let its "
                "process() append numbers, text, arrays, tensors, and lists, tuples or dicts of them"
            ) from None
        finally:
            metric.results.clear()

    def scores(self, confusions: Confusions, pixels: Sequence[int], seen: Sequence[list[list] | None]) -> dict:
        """All that a result says of a run, in percent, from the counts, sizes and `see` of its images.

        Raises UserError for label maps that cannot be what they were meant to be.
        """
        areas = confusions.areas()
        ignored = np.array(pixels) - areas[:, 3].sum(axis=1)
        unknown = np.zeros(len(areas), np.int64)  # labels that are no class have ended the run
        rows = np.concatenate([areas.reshape(len(areas), -1), unknown[:, None], ignored[:, None]], axis=1)
        self.main.size = len(rows)
        found = self.main.compute_metrics(list(rows))
        scalars = {name: value for name, value in found.items() if name not in SCORES}
        for index, metric in enumerate(self.others):
            metric.results = [restored(result) for image in seen if image for result in image[index]]
            values = metric.evaluate(len(rows))
            taken = SCORES | scalars.keys()
            scalars |= {f"{type(metric).__name__}/{k}" if k in taken else k: v for k, v in values.items()}
        named = {name: found[name] for name in ("mIoU", "aAcc", "mAcc", "interval")}
        return {**named, "per_class_IoU": found["IoU"], "metrics": dict(_numbers(scalars.items()))}


def check_runnable(run: Run) -> None:
    """Raise UserError for what a config says and a pass would pass over: it reads images in their order, once each."""
    loader, sampler = run.config.test_dataloader, run.config.test_dataloader.get("sampler") or {}
    known = {*inspect.signature(DataLoader).parameters, "dataset", "sampler", "collate_fn"}
    for key in sorted(loader.keys() - known):
        raise UserError(f"{run.path}: no setting test_dataloader.{key}; there are {', '.join(sorted(known))}")
    workers = loader.get("num_workers", 0)
    if not isinstance(workers, int) or workers < 0:
        raise UserError(f"{run.path}: test_dataloader.num_workers must be 0 or more, not {workers!r}")
    if sampler.get("type", "DefaultSampler") != "DefaultSampler" or sampler.get("shuffle"):
        raise UserError(
            f"{run.path}: test_dataloader.sampler is {sampler.get('type')}, shuffled or not; every image counts once, "
            "in order: leave it out, or choose images by test_dataloader.dataset.indices"
        )
    if not isinstance(run.config.get("default_hooks", {}), dict) or run.config.get("custom_hooks"):
        raise UserError(
            f"{run.path}: default_hooks must be a dict, and custom_hooks are run by MMEngine alone, see its Runner.test"
        )


def _numbers(scalars: Iterable[tuple[str, Any]]) -> Iterable[tuple[str, float | int]]:
    """Those that are one number, whatever type it has."""
    for name, value in scalars:
        size = value.numel() if isinstance(value, Tensor) else np.size(value)
        if isinstance(value, Tensor | np.ndarray | np.generic) and size == 1:
            value = value.item()
        if isinstance(value, int | float):
            yield name, value


def plain(value: Any) -> Any:
    """A value as JSON holds it. Raises TypeError, with its kind, where it cannot.

    >>> plain({"areas": (1, np.array([2, 3]))})
    {'areas': {'tuple': [1, {'array': [2, 3], 'dtype': 'int64'}]}}
    """
    if isinstance(value, Tensor):
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "iufb":
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, tuple):
        return {"tuple": [plain(item) for item in value]}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) and key not in TAGS for key in value):
        return {key: plain(item) for key, item in value.items()}
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a {type(value).__name__}")


def restored(value: Any) -> Any:
    """What `plain` was given."""
    if isinstance(value, list):
        return [restored(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(restored(item) for item in value["tuple"])
    if "tensor" in value:
        return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"]))
    if "array" in value:
        return np.array(value["array"], value["dtype"])[()]
    return {key: restored(item) for key, item in value.items()}
