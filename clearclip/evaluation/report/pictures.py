"""The worst and best images of runs, segmented once more: records hold counts, and no label maps.

It takes what the evaluation took: the images at their place and the weights. Where either is missing, the report says
so and names the images.
"""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import clearclip.evaluation.mmcv_ext  # noqa: F401, before mmseg is imported

import numpy as np
import torch
from PIL import Image

from clearclip.backbones import Backbone, load_backbone
from clearclip.decode import LabelDecoder
from clearclip.errors import UserError, one_line
from clearclip.evaluation.confusion import Confusion
from clearclip.evaluation.evaluate import build_segmenter, open_benchmark
from clearclip.evaluation.passes import Benchmark, Pass, load
from clearclip.evaluation.passes import Picture as Place
from clearclip.evaluation.report.gather import DataSet, Entry, Report
from clearclip.evaluation.run import Run, backbone_settings, load_config
from clearclip.evaluation.statistics import image_scores
from clearclip.segmenter import Segmenter
from clearclip.text import Queries
from clearclip.visualize import ignored, overlay, palette
from clearclip.vocabulary import load_vocabulary

SIDE = 360  # pixels of a picture's longer side
QUALITY = 78  # of its JPEG: some 20 kB


@dataclass(frozen=True)
class Shown:
    """An image of a data set, as the page shows it.

    Attributes:
        name: its path below the data set's root.
        views: titles and pictures, as `data:` addresses.
        legend: names and colours, as `#rrggbb`, of the classes that are seen.
    """

    name: str
    views: list[tuple[str, str]]
    legend: list[tuple[str, str]]


@dataclass
class Album:
    """Images of a data set by their ids, and a sentence where there are no pictures of them."""

    shown: dict[str, Shown] = field(default_factory=dict)
    missing: str = ""


@dataclass(frozen=True)
class _Ready:
    """What segments the images of a run."""

    segmenter: Segmenter
    queries: Queries
    decoder: LabelDecoder


@dataclass(frozen=True)
class _Again:
    """A run to segment images of once more; what it takes is not ready where there is a `problem`."""

    run: Run
    benchmark: Benchmark
    ready: _Ready | None
    problem: str = ""


def albums(report: Report, say: Callable[[str], None] = lambda line: None) -> dict[str, Album]:
    """For each data set the images at either end of its best run, as that run and one more see them."""
    backbones: dict[str, Backbone] = {}
    found = {}
    for data_set in report.data_sets:
        chosen = _chosen(data_set)
        if chosen:
            say(f"{data_set.name}: segmenting {len(_samples(chosen[0]))} images once more")
            found[data_set.name] = _album(chosen, [entry.label for entry in chosen], backbones)
    return found


def _chosen(data_set: DataSet) -> list[Entry]:
    """The best run of a data set, whose images are shown, and the reference or, where that is the best, the next."""
    top = data_set.top
    if top is None or not _samples(top):
        return []
    others = sorted((one for one in data_set.rivals if one is not top), key=lambda one: -(one.mIoU or 0.0))
    references = [one for one in others if one.run.get("method") == data_set.reference]
    return [top, *(references or others)[:1]]


def _samples(entry: Entry) -> list[str]:
    return list(dict.fromkeys(sample for sample, _ in [*entry.worst, *entry.best]))


def _album(entries: Sequence[Entry], labels: Sequence[str], backbones: dict[str, Backbone]) -> Album:
    samples = _samples(entries[0])
    try:
        opened: dict[str, Benchmark] = {}
        again = [_again(entry, opened, backbones) for entry in entries]
        shown = {sample: _shown(sample, again, labels) for sample in samples if sample in again[0].benchmark.samples}
    except Exception as error:  # whatever a data set or a network of someone else's raises
        return Album(missing=f"{_sentence(error)}.")
    problems = [f"{label} was not run again: {one.problem}." for one, label in zip(again, labels) if one.problem]
    if len(shown) < len(samples):
        problems.append(f"{len(samples) - len(shown)} images have changed since they were counted.")
    return Album(shown, " ".join(problems))


def _again(entry: Entry, opened: dict[str, Benchmark], backbones: dict[str, Backbone]) -> _Again:
    """A run with its data and, where its weights can be loaded, its segmenter."""
    folder = entry.run.get("folder")
    config = None if folder is None else Path(folder) / "config.py"
    if config is None or not config.is_file():
        raise UserError("no config.py lies beside the result, which says how to segment its images again")
    run = load_config(config)
    benchmark = open_benchmark(run, opened)
    try:
        return _Again(run, benchmark, _ready(run, backbones))
    except Exception as error:  # weights, vision models and masks may be gone
        return _Again(run, benchmark, None, _sentence(error))


def _ready(run: Run, backbones: dict[str, Backbone]) -> _Ready:
    settings = backbone_settings(run)
    if repr(settings) not in backbones:
        backbones[repr(settings)] = load_backbone(**settings)
    segmenter = build_segmenter(run, backbones[repr(settings)], {})
    queries = segmenter.queries(load_vocabulary(run.config.model.vocabulary))
    return _Ready(segmenter, queries, segmenter.decoder(queries))


def _shown(sample: str, again: Sequence[_Again], labels: Sequence[str]) -> Shown:
    first = again[0]
    packed = _loaded(first, sample)
    rgb = packed["inputs"].flip(0).permute(1, 2, 0).numpy()
    truth = packed["data_samples"].gt_sem_seg.data[0].numpy()
    classes = first.benchmark.classes
    none = first.benchmark.evaluators.ignore_index
    maps = [("ground truth", np.where(truth == none, ignored(len(classes)), truth))]
    for one, label in zip(again, labels):
        if one.ready is not None:
            labelled = _segmented(one.ready, packed)
            counted = Confusion.count(truth, labelled, len(classes), none)
            maps.append((f"{label}, mIoU {_score(counted):.1f}", labelled))
    small = _small(rgb, Image.Resampling.LANCZOS)
    views = [("image", _address(small))]
    seen: set[int] = set()
    for title, labelled in maps:
        shrunk = _small(labelled.astype(np.int32), Image.Resampling.NEAREST)
        seen |= set(np.unique(shrunk).tolist())
        views.append((title, _address(np.asarray(overlay(small, shrunk, classes, legend=False)))))
    colours = palette(len(classes))
    legend = [
        (classes[index], "#{:02x}{:02x}{:02x}".format(*colours[index]))
        for index in sorted(seen)
        if index < len(classes)
    ]
    return Shown(sample.rpartition("#")[0], views, legend)


def _loaded(one: _Again, sample: str) -> dict[str, Any]:
    """The image and its ground truth, as the evaluation reads them."""
    place = Place({0: one.benchmark.samples.index(sample)})
    _, loaded = load(Pass([one.run], [one.benchmark], [0], [place]), place)
    if isinstance(loaded[0], Exception):
        raise loaded[0]
    return loaded[0]


@torch.inference_mode()
def _segmented(ready: _Ready, packed: dict[str, Any]) -> np.ndarray:
    """Labels [H, W] of an image."""
    sample = packed["data_samples"]
    view = ready.segmenter.view(packed["inputs"].flip(0), sample.ori_shape, sample.get("img_path"))
    (dense,) = ready.segmenter.look([view], ready.queries)
    return ready.segmenter.decode(view, dense, ready.queries, ready.decoder).labels.cpu().numpy()


def _score(counted: Confusion) -> float:
    """mIoU of one image."""
    matrix = counted.dense()
    right, predicted, true = np.diag(matrix), matrix[:, :-1].sum(0), matrix.sum(1)
    areas = np.stack([right, predicted + true - right, predicted, true])[None]
    return float(image_scores(areas)[0])


def _small(pixels: np.ndarray, how: Image.Resampling) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, how))


def _address(pixels: np.ndarray) -> str:
    """A picture as a `data:` address."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _sentence(error: Exception) -> str:
    text = one_line(error)
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
