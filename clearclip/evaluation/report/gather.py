"""What a report shows, found in work dirs and records and counted: `Report.of(find(["work_dirs"]))`."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from clearclip.errors import UserError, one_line
from clearclip.evaluation.confusion import Confusions
from clearclip.evaluation.records import Records, Run
from clearclip.evaluation.results.differences import comparable
from clearclip.evaluation.results.record import read_result
from clearclip.evaluation.results.recorded import result_of
from clearclip.evaluation.results.tables import AVERAGES, BENCHMARKS, ROW, is_partial, standing
from clearclip.evaluation.statistics import (
    TRUTH,
    Confused,
    Estimate,
    Interval,
    best,
    confused_pairs,
    paired,
    worst,
)

RESULT = "result.json"
FEW = 3  # images of a class that give its IoU an interval
PAIRS = 12  # most confused pairs of a run
SHARED = 0.5  # of a run's times that another has to the last digit: they were counted in one pass


@dataclass(frozen=True)
class Sources:
    """Where results and records lie.

    Attributes:
        results: `result.json` files.
        records: `.sqlite` files, in which the runs of results are looked up.
        alone: those of `records` all of whose runs are shown, also without a result.
    """

    results: list[Path]
    records: list[Path]
    alone: list[Path]


@dataclass
class Counted:
    """What the records of a run hold.

    Attributes:
        samples: N image ids, sorted.
        areas: int64 [N, 4, C], for clearclip.evaluation.statistics.
        total: int64 [C, C + 1], the confusion matrix of all images.
        seconds: what was noted of each image.
        classes: C names.
    """

    samples: list[str]
    areas: np.ndarray
    total: np.ndarray
    seconds: list[float]
    classes: tuple[str, ...]


@dataclass
class Entry:
    """A run on a data set, as a report shows it.

    Attributes:
        row: its row of the table of results.
        run: its result.
        label: what tells it from the other runs on its data set.
        counted: whether its records were found.
        gain: its difference from the reference, on the same images; None where there is none.
        against: the difference of mIoU that the result itself has from the reference, where records are gone.
        seconds: median time of an image; None where it is not known or other runs had a part in it.
        shared: whether other runs of the report were counted in the same pass.
        total: its confusion matrix [C, C + 1].
        pairs: its most confused pairs.
        worst, best: images with their mIoU.
    """

    row: int
    run: dict[str, Any]
    label: str = ""
    counted: bool = False
    gain: Estimate | None = None
    against: Interval | None = None
    seconds: float | None = None
    shared: bool = False
    classes: tuple[str, ...] = ()
    total: np.ndarray | None = None
    pairs: list[Confused] = field(default_factory=list)
    worst: list[tuple[str, float]] = field(default_factory=list)
    best: list[tuple[str, float]] = field(default_factory=list)

    @property
    def partial(self) -> bool:
        return is_partial(self.run)

    @property
    def mIoU(self) -> float | None:
        return self.run["mIoU"]

    @property
    def interval(self) -> Interval | None:
        """mIoU with the bounds that half the width of its interval gives."""
        if self.mIoU is None:
            return None
        half = self.run.get("interval")
        half = math.nan if half is None else half
        return Interval(self.mIoU, self.mIoU - half, self.mIoU + half)

    @property
    def difference(self) -> Interval | None:
        """Of mIoU from the reference."""
        return self.gain.mIoU if self.gain else self.against

    @property
    def beyond_published(self) -> float | None:
        """mIoU less the published one; None for a part of a benchmark."""
        published = self.run.get("published")
        if self.partial or published is None or self.mIoU is None or self.run.get("benchmark_images") is None:
            return None
        return self.mIoU - published


@dataclass
class DataSet:
    """All runs on one data set, in the order of the table's rows; `averages` are of several, and have no images."""

    name: str
    entries: list[Entry]
    reference: str

    @property
    def is_average(self) -> bool:
        return self.name in AVERAGES

    @property
    def rivals(self) -> list[Entry]:
        """The runs on the most images: only these are compared with one another."""
        scored = [entry for entry in self.entries if entry.mIoU is not None]
        most = max((entry.run.get("images") or 0 for entry in scored), default=0)
        return [entry for entry in scored if (entry.run.get("images") or 0) == most]

    @property
    def top(self) -> Entry | None:
        """The rival of greatest mIoU."""
        return max(self.rivals, key=lambda entry: entry.mIoU or 0.0, default=None)

    @property
    def classes(self) -> list[str]:
        """The names of all classes that a run has, in the order of the data set's."""
        names = [dict.fromkeys(entry.run.get("per_class_IoU") or {}) for entry in self.entries]
        return list(dict.fromkeys(name for each in sorted(names, key=len, reverse=True) for name in each))


@dataclass
class Report:
    """All that a page shows.

    Attributes:
        rows: what tells the rows of the table apart, by name; a name is left out where all are alike.
        common: what all rows share.
        data_sets: benchmarks in their usual order, then others, then averages.
        notes: sentences about what is missing.
    """

    rows: list[dict[str, str]]
    common: dict[str, str]
    data_sets: list[DataSet]
    notes: list[str]


def find(paths: Iterable[str | Path], records: str | Path | None = None) -> Sources:
    """The results and records below work dirs, those that are named, and what the folder `records` holds besides.

    Raises UserError for a path that is not there or holds neither.
    """
    results: dict[Path, Path] = {}
    stores: dict[Path, Path] = {}
    alone: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path} does not exist: give a work dir, a {RESULT} or a folder of records")
        found = [path] if path.suffix == ".json" else sorted(path.rglob(RESULT))
        kept = [path] if path.suffix == ".sqlite" else sorted(path.rglob("*.sqlite"))
        if path.is_file() and path.suffix not in (".json", ".sqlite"):
            raise UserError(f"{path} is no result: give a work dir, a {RESULT} or a folder of records")
        if not found and not kept:
            raise UserError(f"{path} holds no {RESULT} and no records: give the folder that an evaluation wrote to")
        results |= {one.resolve(): one for one in found}
        stores |= {one.resolve(): one for one in kept}
        alone += [] if found else [one.resolve() for one in kept]
    if records is not None:
        stores |= {one.resolve(): one for one in sorted(Path(records).glob("*.sqlite")) if one.stat().st_size}
    return Sources(list(results.values()), list(stores.values()), [stores[one] for one in dict.fromkeys(alone)])


def gather(
    sources: Sources, against: str | None = None, pictures: int = 3, say: Callable[[str], None] = lambda line: None
) -> Report:
    """Read results and records and compare each run with that of the method `against` (default: ClearCLIP, or the
    first) that nothing but the method tells apart.

    `pictures` images are named at either end. Raises UserError where nothing can be read, and for an `against` that
    no run has.
    """
    notes: list[str] = []
    with ExitStack() as stack:
        stores = [stack.enter_context(Records.open(path, readonly=True)) for path in sources.records]
        ledger: dict[str, list[Run]] = {}
        for store in stores:
            for run in store.runs():
                ledger.setdefault(run.key, []).append(run)
        runs = list(_results(sources.results, notes))
        known = {run.get("record") for run in runs}
        alone = {store.path for store in stores} & set(sources.alone)
        runs += _recorded(ledger, known, alone, notes)
        if not runs:
            raise UserError("; ".join(notes) or "no run has counted an image yet: run an evaluation first")
        return _report(runs, ledger, against, pictures, notes, say)


def _results(paths: Iterable[Path], notes: list[str]) -> Iterator[dict[str, Any]]:
    for path in paths:
        try:
            yield {**read_result(path), "folder": str(path.parent)}
        except UserError as error:
            notes.append(str(error))


def _recorded(ledger: dict[str, list[Run]], known: set, alone: set[Path], notes: list[str]) -> list[dict[str, Any]]:
    """Results of runs that have records alone. One whose records are in several files is that of the fullest."""
    found = []
    for key, parts in ledger.items():
        if key not in known and any(part.records.path in alone for part in parts):
            try:
                results = [result for part in parts if (result := result_of(part))]
            except UserError as error:
                notes.append(str(error))
                continue
            found += [max(results, key=lambda result: result["images"])] if results else []
            if len(results) > 1:
                notes.append(f"run {key[:8]} is in {len(results)} files of records: merge them by `clearclip merge`")
    return found


def _report(
    runs: list[dict[str, Any]],
    ledger: dict[str, list[Run]],
    against: str | None,
    pictures: int,
    notes: list[str],
    say: Callable[[str], None],
) -> Report:
    cells = standing(runs)
    keys = [dict(zip(ROW, key)) for key in cells]
    apart = _apart(keys)
    reference = _reference([key["method"] for key in keys], against)
    measured = [name for row in cells.values() for name in row if name not in AVERAGES]
    data_sets = []
    for name in dict.fromkeys([*BENCHMARKS, *measured, *AVERAGES]):
        entries = [Entry(index, row[name]) for index, row in enumerate(cells.values()) if name in row]
        if entries:
            say(f"{name}: {len(entries)} runs")
            _label(entries, [keys[entry.row] for entry in entries])
            data_sets.append(DataSet(name, entries, reference))
            _count(data_sets[-1], ledger, pictures, notes)
    _mark_shared([entry for one in data_sets for entry in one.entries])
    rows = [{name: key[name] for name in apart} for key in keys]
    return Report(rows, {name: keys[0][name] for name in ROW if name not in apart and keys[0][name]}, data_sets, notes)


def _apart(keys: Sequence[dict[str, str]]) -> list[str]:
    """What tells rows of the table from one another, the method first."""
    return [name for name in ROW if name == "method" or len({key[name] for key in keys}) > 1]


def _label(entries: Sequence[Entry], keys: Sequence[dict[str, str]]) -> None:
    for entry, key in zip(entries, keys):
        entry.label = ", ".join(key[name] for name in _apart(keys) if key[name])


def _reference(methods: Sequence[str], against: str | None) -> str:
    if against is None:
        return "ClearCLIP" if "ClearCLIP" in methods else methods[0]
    if against not in methods:
        raise UserError(f"--against {against}: no run has that method; there are {', '.join(dict.fromkeys(methods))}")
    return against


def _count(data_set: DataSet, ledger: dict[str, list[Run]], pictures: int, notes: list[str]) -> None:
    """Fill in what the records of each run tell. Only one run and its reference are in memory at a time."""
    reference: tuple[Entry, Counted] | None = None
    references = [entry for entry in data_set.entries if entry.run.get("method") == data_set.reference]
    for entry in data_set.entries:
        other = next((one for one in references if one is not entry and comparable(one.run, entry.run)), None)
        if other is not None and data_set.reference in entry.run["others"]:
            entry.against = Interval(*entry.run["others"][data_set.reference])
        counted = _counted(entry, ledger, notes, data_set)
        if counted is None:
            continue
        entry.counted, entry.classes, entry.total = True, counted.classes, counted.total
        entry.pairs = confused_pairs(counted.total, counted.classes, PAIRS)
        entry.worst = worst(counted.areas, counted.samples, pictures)
        entry.best = best(counted.areas, counted.samples, pictures)
        entry.run["times"] = counted.seconds
        if other is None:
            continue
        if reference is None or reference[0] is not other:
            found = _counted(other, ledger, [], data_set)
            reference = None if found is None else (other, found)
        if reference is not None:
            entry.gain = _gain(counted, reference[1], f"{data_set.name}, {entry.run['method']}", notes)


def _gain(one: Counted, other: Counted, name: str, notes: list[str]) -> Estimate | None:
    """What a run gains over its reference. A class of fewer than `FEW` images has no interval: one of no width says
    nothing.
    """
    try:
        gain = paired(one.areas, other.areas, one.samples, other.samples)
    except UserError as error:
        notes.append(f"{name} has no difference: {error}")
        return None
    images = (one.areas[:, TRUTH] > 0).sum(0)
    single = [iou if many >= FEW else Interval(iou.value, math.nan, math.nan) for iou, many in zip(gain.IoU, images)]
    return replace(gain, IoU=tuple(single))


def _counted(entry: Entry, ledger: dict[str, list[Run]], notes: list[str], data_set: DataSet) -> Counted | None:
    """The records of a run, from all files that have some; None, with a note, where not all images have one."""
    key, images = entry.run.get("record"), entry.run.get("images")
    if data_set.is_average:
        return None
    where = f"{data_set.name}, {entry.run['method']}"
    if not key or key not in ledger:
        notes.append(f"{where}: its records were not found, so that it has no confusions, images and classes won")
        return None
    parts: list[Confusions] = []
    seconds: list[float] = []
    seen: set[str] = set()
    try:
        for run in ledger[key]:
            here = sorted(run.done() - seen)
            if here:
                parts.append(run.confusions(here))
                seconds += [i.seconds for i in run.images() if i.sample not in seen and i.seconds is not None]
                seen |= set(here)
    except UserError as error:
        notes.append(f"{where}: {one_line(error)}")
        return None
    if len(seen) != images:
        notes.append(f"{where}: there are records of {len(seen)} images, and its result is of {images}")
        return None
    samples = sorted(seen)
    joined = Confusions.join(parts, samples)
    return Counted(samples, joined.areas(), joined.total(), seconds, ledger[key][0].classes)


def _mark_shared(entries: Sequence[Entry]) -> None:
    """Give each run its median time, unless it shared its time with others: a pass divides it equally."""
    owners: Counter[float] = Counter()
    for entry in entries:
        owners.update(set(entry.run.get("times") or ()))
    for entry in entries:
        times = entry.run.pop("times", None)
        if times:
            common = sum(owners[time] > 1 for time in times) / len(times)
            entry.shared = common > SHARED
            entry.seconds = None if entry.shared else float(np.median(times))
