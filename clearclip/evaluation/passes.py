"""Passes over the data: runs that see the same images in the same windows through the same backbone share all of it.

Each image is read and resized once, its windows go through the untouched blocks once, and any number of methods,
vocabularies, thresholds and ground truths are counted from it. VOC20 with VOC21, Context59 with Context60 and
COCO-Object with COCO-Stuff are one pass each: the same pictures, other labels.
"""

import os
import signal
import time
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import clearclip.evaluation.mmcv_ext  # noqa: F401, before mmseg is imported

import numpy as np
import torch
from mmseg.datasets import BaseSegDataset
from torch import Tensor

from clearclip.decode import LabelDecoder, tally
from clearclip.errors import UserError
from clearclip.evaluation.confusion import Confusion
from clearclip.evaluation.evaluators import Evaluators
from clearclip.evaluation.pictures import Pictures
from clearclip.evaluation.records import ImageRecord
from clearclip.evaluation.run import Run, backbone_settings
from clearclip.evaluation.shards import Ledger, Share
from clearclip.features import Kept
from clearclip.images import orientation
from clearclip.segmenter import Segmenter, see_together
from clearclip.text import Queries
from clearclip.view import View

# What runs of a pass have in common.
GEOMETRY = ("short_side", "long_side", "resize", "crop", "stride", "two_steps", "window_batch", "features")
SIGNLESS = 2**31 - 1
EDGE = 4096  # bytes at both ends of a file that tell one picture from another


@dataclass(frozen=True)
class Benchmark:
    """The images and ground truth of one data set.

    Attributes:
        settings: of MMSegmentation's data set.
        dataset: the same, built, with its pipeline.
        evaluators: its metrics.
        samples: an id for each image: its path below the data root, and what its file and its labels are like.
    """

    settings: dict[str, Any]
    dataset: BaseSegDataset
    evaluators: Evaluators
    samples: tuple[str, ...]

    def path(self, sample: str) -> Path:
        """The file of an image."""
        return Path(self.settings["data_root"]) / sample.rpartition("#")[0]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.dataset.metainfo["classes"])


@dataclass(frozen=True)
class Picture:
    """One image, and its index in each benchmark of the pass that has it."""

    places: dict[int, int]


@dataclass(frozen=True)
class Pass:
    """Runs to be counted from the same images.

    Attributes:
        runs: what is evaluated; run i is on the benchmark `benchmark_of[i]` of `benchmarks`.
        pictures: all images of all benchmarks, each once.
    """

    runs: list[Run]
    benchmarks: list[Benchmark]
    benchmark_of: list[int]
    pictures: list[Picture]

    def samples(self, position: int, share: Share) -> list[str]:
        """The samples of a benchmark that are in a share of the pictures."""
        places = [picture.places.get(position) for picture in share.take(self.pictures)]
        return [self.benchmarks[position].samples[place] for place in places if place is not None]

    def __str__(self) -> str:
        names = dict.fromkeys(run.config.benchmark.name for run in self.runs)
        methods = dict.fromkeys(run.method for run in self.runs)
        return f"{' + '.join(names)}: {len(self.pictures)} images, {len(methods)} methods, {len(self.runs)} runs"


def plan(runs: Sequence[tuple[Run, Benchmark]]) -> list[Pass]:
    """The fewest passes for these runs, in the order in which they were asked for.

    Runs share a pass where backbone, device, precision and geometry are the same and their benchmarks have images in
    common, directly or by way of a third.
    """
    groups: dict[str, list[tuple[Run, Benchmark]]] = defaultdict(list)
    for run, benchmark in runs:
        settings = {key: run.config.model.get(key) for key in GEOMETRY}
        groups[repr((backbone_settings(run), settings, benchmark.settings["pipeline"][0]))].append((run, benchmark))
    return [one for group in groups.values() for one in _passes(group)]


def _passes(group: list[tuple[Run, Benchmark]]) -> Iterator[Pass]:
    benchmarks: list[Benchmark] = []
    for _, benchmark in group:
        if not any(benchmark is known for known in benchmarks):
            benchmarks.append(benchmark)
    pictures = [_fingerprints(benchmark) for benchmark in benchmarks]
    for together in _joined([set(prints) for prints in pictures]):
        places: dict[Any, dict[int, int]] = defaultdict(dict)
        for position, index in enumerate(together):
            for place, print_ in enumerate(pictures[index]):
                places[print_][position] = place
        chosen = [benchmarks[index] for index in together]
        mine = [(run, next(i for i, one in enumerate(chosen) if one is benchmark)) for run, benchmark in group
                if any(one is benchmark for one in chosen)]  # fmt: skip
        yield Pass([run for run, _ in mine], chosen, [i for _, i in mine], [Picture(p) for p in places.values()])


def _joined(sets: list[set]) -> list[list[int]]:
    """Indices of sets, those together that have something in common, directly or by way of others."""
    groups: list[tuple[list[int], set]] = []
    for index, items in enumerate(sets):
        touching = [group for group in groups if group[1] & items]
        groups = [group for group in groups if not group[1] & items]
        indices = sorted([index, *(i for group in touching for i in group[0])])
        groups.append((indices, items.union(*(group[1] for group in touching))))
    return sorted(indices for indices, _ in groups)


def _fingerprints(benchmark: Benchmark) -> list[tuple]:
    """What tells each picture from others, wherever copies of it lie: its name, and what its file is like."""
    seen: dict[tuple, int] = defaultdict(int)
    prints = []
    for index in range(len(benchmark.dataset)):
        path = Path(benchmark.dataset.get_data_info(index)["img_path"])
        try:
            print_ = (path.name, fingerprint(path))
        except OSError as error:
            raise UserError(f"image {path} cannot be read ({error.strerror}): make it readable") from error
        seen[print_] += 1
        prints.append((*print_, seen[print_]))  # a data set may have a picture twice
    return prints


def fingerprint(*paths: str | Path) -> int:
    """A checksum of the sizes of files and of both ends of each: other content would change it."""
    checksum = 0
    for path in paths:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            checksum = zlib.crc32(file.read(EDGE), zlib.crc32(str(size).encode(), checksum))
            file.seek(max(0, size - EDGE))
            checksum = zlib.crc32(file.read(EDGE), checksum)
    return checksum


@dataclass
class Work:
    """What one run of a pass does with each image."""

    run: Run
    segmenter: Segmenter
    queries: Queries
    decoder: LabelDecoder
    benchmark: Benchmark
    position: int  # of the benchmark in the pass
    ledger: Ledger
    missing: set[str] = field(default_factory=set)  # samples that this process is to count
    kept: dict[str, Kept] | None = None  # patch features by sample, in place of the network
    pictures: Pictures | None = None  # where it shows what it saw
    undrawn: set[str] = field(default_factory=set)  # samples that it is to draw
    error: Exception | None = None  # what ended it; the other runs of the pass go on


class Interrupted(Exception):
    """A signal asked to stop; the images in hand are written."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


Loaded = dict[int, Any]  # by position of the benchmark: `inputs` BGR [3, H, W] and `data_samples`, or an exception


def evaluate(one: Pass, works: Sequence[Work], batch_size: int, threads: int) -> Iterator[int]:
    """Count what is missing of a pass; after each batch, when its records are on the disk, yields its number of images.

    Raises Interrupted after the batch in which SIGINT or SIGTERM came.
    """
    todo = [picture for picture in one.pictures if any(_wants(work, picture) for work in works)]
    with ThreadPoolExecutor(max(1, threads)) as pool, signals() as stop:
        ready = _prefetched(pool, lambda picture: load(one, picture), todo, ahead=2 * batch_size + threads)
        while batch := list(islice(ready, batch_size)):
            _count(works, batch)
            yield len(batch)
            if all(work.error for work in works):
                return
            if stop:
                raise Interrupted(stop[0])


def _wants(work: Work, picture: Picture) -> bool:
    place = picture.places.get(work.position)
    if place is None or work.error is not None:
        return False
    sample = work.benchmark.samples[place]
    return sample in work.missing or sample in work.undrawn


def load(one: Pass, picture: Picture) -> tuple[Picture, Loaded]:
    """Read a picture once and its label map in each benchmark, as their pipelines do.

    A picture with an EXIF orientation is read for each, as each has label maps of its own: see `LoadImage`.
    """
    loaded: Loaded = {}
    image: dict[str, Any] = {}
    for position, place in picture.places.items():
        dataset = one.benchmarks[position].dataset
        first, *rest = dataset.pipeline.transforms
        try:
            results = dataset.get_data_info(place)
            results = {**results, **image} if image else first(results)
            as_stored = results.get("as_stored", False)
            if image or orientation(results["img_path"]) == 1:
                image = {key: results[key] for key in ("img", "img_shape", "ori_shape")}
            for step in rest:
                results = step(results)
            truth = narrow(results["data_samples"].gt_sem_seg.data[0])
            loaded[position] = {**results, "truth": truth, "as_stored": as_stored}
        except Exception as error:  # ends the runs of this benchmark alone
            loaded[position] = error
    return picture, loaded


def _prefetched(pool: ThreadPoolExecutor, function: Any, items: Iterable, ahead: int) -> Iterator:
    """What `function` makes of each item, in order, up to `ahead` of them made in advance.

    Threads, not processes: what decodes pictures lets others run, shared memory may be small, and an error comes as it
    was raised.
    """
    source = iter(items)
    pending: list[Future] = [pool.submit(function, item) for item in islice(source, ahead)]
    try:
        while pending:
            yield pending.pop(0).result()
            pending += [pool.submit(function, item) for item in islice(source, 1)]
    finally:
        for future in pending:
            future.cancel()


@contextmanager
def signals() -> Iterator[list[int]]:
    """A list that the number of a SIGINT or SIGTERM comes into; a second one ends the process as usual."""
    got: list[int] = []

    def note(number: int, frame: Any) -> None:
        got.append(number)
        for name, handler in before.items():
            signal.signal(name, handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield got
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _count(works: Sequence[Work], batch: Sequence[tuple[Picture, Loaded]]) -> None:
    """Segment a batch for every run that lacks it, count, and write the records."""
    wanted: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, (picture, loaded) in enumerate(batch):
        alike: dict[bool, list[int]] = defaultdict(list)  # works that see the picture turned by EXIF, or as stored
        for i, work in enumerate(works):
            if _wants(work, picture):
                alike[_as_stored(loaded[work.position])].append(i)
        for together in alike.values():
            wanted[tuple(together)].append(index)
    for which, indices in wanted.items():
        _count_or_fail([works[i] for i in which], [batch[i] for i in indices])


def _as_stored(loaded: Any) -> bool:
    """Whether EXIF's orientation was ignored; of what could not be read, no matter which."""
    return isinstance(loaded, dict) and loaded["as_stored"]


def _count_or_fail(works: Sequence[Work], batch: Sequence[tuple[Picture, Loaded]]) -> None:
    """Count for all runs together and, where that fails, for each alone: those that fail then are out."""
    for work in works:
        errors = (loaded[work.position] for _, loaded in batch)
        work.error = next((error for error in errors if isinstance(error, Exception)), None)
    sound = [work for work in works if work.error is None]
    try:
        if sound:
            _count_alike(sound, batch)
        return
    except Exception as error:
        if len(sound) == 1:
            sound[0].error = _explained(error)
            return
    for work in sound:  # here, where the error no longer holds the memory of what failed
        _count_or_fail([work], batch)


def _explained(error: Exception) -> Exception:
    """The same, or a sentence where memory is too small."""
    if not isinstance(error, MemoryError | torch.OutOfMemoryError):
        return error
    return UserError(
        f"out of memory ({' '.join(str(error).split()) or 'of the CPU'}): use a smaller test_dataloader.batch_size or "
        "model.window_batch, or a GPU with more"
    )


@torch.inference_mode()
def _count_alike(works: Sequence[Work], batch: Sequence[tuple[Picture, Loaded]]) -> None:
    start = time.perf_counter()
    views = [_view(works[0], picture, loaded[works[0].position]) for picture, loaded in batch]
    seen = see_together([(work.segmenter, work.queries) for work in works], views)
    counts: list[Tensor] = []
    extras: list[dict | None] = []
    for work, dense in zip(works, seen):
        for view, one, (_, loaded) in zip(views, dense, batch):
            labels = work.segmenter.decode(view, one, work.queries, work.decoder).labels
            inputs, sample = loaded[work.position]["inputs"], loaded[work.position]["data_samples"]
            truth, evaluators = loaded[work.position]["truth"], work.benchmark.evaluators
            known = truth.to(labels.device, non_blocking=True)
            counts.append(count(labels, known, len(work.benchmark.classes), evaluators.ignore_index, one.finite))
            kept = evaluators.see(inputs, sample, labels)
            extras.append(None if kept is None else {"evaluators": kept})
            if work.pictures:
                rgb = inputs.flip(0).permute(1, 2, 0).numpy()
                work.pictures.save(sample.img_path, rgb, truth.numpy(), labels.cpu().numpy())
    downloaded = [part.numpy() for part in torch.cat(counts).cpu().split([len(part) for part in counts])]
    seconds = (time.perf_counter() - start) / len(downloaded)
    numbers, noted = iter(downloaded), iter(extras)
    records = [[_record(work, *item, next(numbers), seconds, next(noted)) for item in batch] for work in works]
    for work, mine in zip(works, records):
        work.ledger.add([record for record in mine if record.sample in work.missing])
        work.missing -= {record.sample for record in mine}
        work.undrawn -= {record.sample for record in mine}


def _view(work: Work, picture: Picture, packed: dict[str, Any]) -> View:
    """An image as the methods of a pass see it. Raises UserError for kept features of it that are turned otherwise."""
    sample = packed["data_samples"]
    if work.kept is None:
        return work.segmenter.view(packed["inputs"].flip(0), sample.ori_shape, sample.get("img_path"))
    kept = work.kept[work.benchmark.samples[picture.places[work.position]]]
    if kept.note.origin.stored != packed["as_stored"]:
        raise UserError(
            f"{kept.path} was kept of {sample.img_path} turned otherwise than its label map is: keep it by clearclip "
            f"features --config {work.run.path}"
        )
    return work.segmenter.recall(kept.load(), sample.ori_shape)


def count(labels: Tensor, truth: Tensor, classes: int, ignore_index: int, finite: Tensor) -> Tensor:
    """Counts [C · (C + 1) + 2], int64, of two label maps [H, W], on their device: nothing waits for it.

    First those of ground truth × prediction, the last column being predictions that are no class; then of labels in
    the ground truth that are neither classes nor ignored; then whether the scores were finite.
    """
    cells = classes * (classes + 1)
    known, predicted = (_class_or_more(labels_, classes) for labels_ in (truth, labels))
    index = predicted.add_(known, alpha=classes + 1).clamp_(max=cells)
    index.masked_fill_(truth == ignore_index, cells + 1)
    counts = tally(index.flatten().long(), cells + 2)
    counts[cells + 1] = finite.long()
    return counts


def _class_or_more(labels: Tensor, classes: int) -> Tensor:
    """Labels as int32 of their own, all that are no class as `classes`; without its sign a negative number is large."""
    return (labels.int() & SIGNLESS).clamp_(max=classes)


def narrow(labels: Tensor) -> Tensor:
    """Labels in one byte each where they fit, as fewer are quicker to bring to a device."""
    small = labels.to(torch.uint8)
    return small if torch.equal(small.to(labels.dtype), labels) else labels


def _record(
    work: Work, picture: Picture, loaded: Loaded, counts: np.ndarray, seconds: float, extra: dict | None
) -> ImageRecord:
    """The record of one image. Raises UserError for a label that is no class and for scores that were not finite."""
    sample = loaded[work.position]["data_samples"]
    classes = len(work.benchmark.classes)
    if not counts[-1]:
        raise UserError(
            f"{work.run.method} gives scores that are not finite for {sample.img_path}: use precision fp32, and "
            "weights and options without NaN or infinity"
        )
    if counts[-2]:
        raise UserError(_strange_label(work, sample))
    confusion = Confusion.of(counts[:-2].reshape(classes, classes + 1))
    name = work.benchmark.samples[picture.places[work.position]]
    return ImageRecord(name, confusion, sample.ori_shape, seconds, extra)


def _strange_label(work: Work, sample: Any) -> str:
    first = int(bool(sample.get("reduce_zero_label")))  # the file's labels, of which the data set takes 1 off
    classes, ignored = len(work.benchmark.classes), work.benchmark.evaluators.ignore_index
    truth = sample.gt_sem_seg.data.int()
    value = truth[((truth < 0) | (truth >= classes)) & (truth != ignored)][0].item() + first
    return (
        f"label map {sample.seg_map_path} holds {value}, which is none of the {classes} classes ({first} to "
        f"{classes - 1 + first}) nor the ignored {ignored}; convert it again, see datasets/README.md"
    )
