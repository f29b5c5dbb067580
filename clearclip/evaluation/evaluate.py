"""From runs to results: passes are planned, what is missing is counted, and the records become scores."""

import contextlib
import functools
import hashlib
import inspect
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import clearclip.evaluation.mmseg

from mmseg.registry import DATASETS

import clearclip
from clearclip.backbones import Backbone, load_backbone
from clearclip.calibration import Calibration
from clearclip.config import NO_SETTINGS
from clearclip.errors import UserError, one_line
from clearclip.evaluation.datasets import building, check_dataset
from clearclip.evaluation.evaluators import Evaluators, check_runnable
from clearclip.evaluation.features import KeptImages, digest, find_features
from clearclip.evaluation.passes import (
    Benchmark,
    Interrupted,
    Pass,
    Work,
    evaluate,
    fingerprint,
    plan,
    signals,
)
from clearclip.evaluation.pictures import Pictures, own_colours
from clearclip.evaluation.progress import Progress
from clearclip.evaluation.ranks import Ranks
from clearclip.evaluation.records import difference
from clearclip.evaluation.results import Result, write_result
from clearclip.evaluation.run import (
    NUMBERS,
    Run,
    backbone_settings,
    check_classes,
    default_work_dir,
    describe,
    versions,
    write_config,
)
from clearclip.evaluation.segmentor import class_queries
from clearclip.evaluation.shards import Forgotten, Shards, Share
from clearclip.evaluation.statistics import confused_pairs
from clearclip.images import LONG_SIDE
from clearclip.methods import METHODS, Method
from clearclip.refine import REFINEMENTS, Refinement
from clearclip.registry import Choice, Registry
from clearclip.segmenter import Segmenter
from clearclip.text import Queries
from clearclip.vocabulary import load_vocabulary

RECORDS = Path("work_dirs") / "records"
TEXT = (
    "vocabulary",
    "templates",
    "text_embeddings",
    "text_names",
    "logit_scale",
    "other",
)  # what decides a method's queries
ELSEWHERE = ("data_root", "indices")  # of a data set's settings: where it lies, how much of it is asked for
PAIRS = 12  # most confused pairs of classes that a result keeps; with four classes, all
PATIENCE = 1800.0  # the first batch of another process may have to compile a network
POLL_SECONDS = 0.5  # how often rank 0 looks whether the others are done


@dataclass(frozen=True)
class Job:
    """What is to be done, and by whom.

    Attributes:
        runs: what to evaluate.
        work_dirs: where each leaves its result; by default its own below work_dirs/.
        records: the folder of records.
        share: the part of the images that this process counts.
        reports: whether it makes the results; of processes that a launcher started, one does.
        awaited: the part whose images it waits for before it does, its own by default.
        ranks: the processes that a launcher started together, if one did.
        fresh: count again what is counted already.
        show_dir: a folder for pictures of what was seen.
        patience: seconds to wait while no awaited image comes.
    """

    runs: Sequence[Run]
    work_dirs: Sequence[Path | None] = ()
    records: Path = RECORDS
    share: Share = field(default_factory=Share)
    reports: bool = True
    awaited: Share | None = None
    ranks: Ranks | None = None
    fresh: bool = False
    show_dir: Path | None = None
    patience: float = PATIENCE

    def place(self, run: Run) -> int:
        """Where a run stands among `runs`: processes that a launcher started call it that."""
        return next(place for place, one in enumerate(self.runs) if one is run)


def say(line: str) -> None:
    """Tell the user how things go."""
    print(line, file=sys.stderr)


@dataclass(frozen=True)
class Outcome:
    """What became of a run: its result, or what went wrong, or neither where other processes have images left.

    Both, where the result could not be written.
    """

    run: Run
    result: Result | None = None
    error: Exception | None = None


def evaluate_all(job: Job) -> Iterator[Outcome]:
    """Evaluate all runs of a job in as few passes as they need; yields each as its pass is done.

    Raises UserError for data, weights and names that are not there, before anything slow is done, and Interrupted
    where a signal asked to stop: what was counted is kept, and the same job goes on from there.
    """
    opened: dict[str, Benchmark] = {}
    pairs = [(run, open_benchmark(run, opened)) for run in job.runs]
    passes = plan(pairs)
    if len(job.runs) > 1:
        say(f"{len(passes)} passes" if len(passes) > 1 else "one pass")
        for number, one in enumerate(passes, 1):
            say(f"  {number}. {one}")
    progress = Progress(sum(len(job.share.take(one.pictures)) for one in passes))
    with Shards(job.records, job.share) as shards:
        settings, loaded = None, None
        for number, one in enumerate(passes):
            wanted = backbone_settings(one.runs[0])
            if wanted != settings:
                settings, loaded = wanted, None  # one is freed before the next is loaded
                try:
                    loaded = load_backbone(**wanted)
                except Exception as error:
                    yield from _told(job, [Outcome(run, error=error) for run in one.runs])
                    settings = None
            yield from _told(job, _evaluate_pass(job, one, loaded, shards, progress, number))
    progress.close()


def _told(job: Job, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """The same, with rank 0 told of each run that cannot be counted here: it says so, and waits for no image of it."""
    for outcome in outcomes:
        if job.ranks and outcome.error and not job.reports:
            job.ranks.fail(job.place(outcome.run), one_line(outcome.error))
        yield outcome


def _evaluate_pass(
    job: Job, one: Pass, backbone: Backbone | None, shards: Shards, progress: Progress, stage: int
) -> Iterator[Outcome]:
    works, failed = _prepare(job, one, backbone, shards) if backbone else ([], [])
    yield from failed
    if job.fresh:
        _forget(job, one, works, stage)
    for work in works:
        with _ending(work):
            _find_missing(job, one, work)
        if job.ranks:
            job.ranks.tell(job.place(work.run), work.ledger.run.key)
    loader = one.runs[0].config.test_dataloader
    for done in evaluate(one, works, loader.batch_size, loader.get("num_workers", 2)):
        if job.reports:
            progress.update(done)
        _hear(job, works)
    for work in works:
        if work.error is None and job.reports and _complete(job, one, work):
            yield _finished(job, work)
        else:
            yield Outcome(work.run, error=work.error)


@contextlib.contextmanager
def _ending(work: Work) -> Iterator[None]:
    """Let an error end one run of a pass alone."""
    try:
        yield
    except Exception as error:
        work.error = work.error or error


def _forget(job: Job, one: Pass, works: Sequence[Work], stage: int) -> None:
    """Start over. Of processes that a launcher started, rank 0 forgets for all of them, before any of them counts."""
    if job.reports:
        for work in works:
            with _ending(work):
                work.ledger.clear(one.samples(work.position, job.awaited or job.share))
    if job.ranks:
        job.ranks.start(stage)


def _hear(job: Job, works: Sequence[Work]) -> None:
    """End the runs that another process cannot count, or counts as another run. Raises UserError where one has died."""
    if not (job.ranks and job.reports):
        return
    failures = job.ranks.failures()
    for work in works:
        place = job.place(work.run)
        if work.error is None and place in failures:
            work.error = UserError(failures[place])
        for index, key in job.ranks.disagreeing(place, work.ledger.run.key).items():
            work.error = work.error or _disagreement(work, f"process {index + 1} of {job.ranks.rank.count}", key)


def _disagreement(work: Work, process: str, key: str) -> UserError:
    """That another process of the job counts a run as another: rank 0 would wait for its images in vain."""
    theirs = work.ledger.identity_of(key)
    found = difference(theirs, work.ledger.run.identity) if theirs else {}
    parts = "; ".join(f"{name} is {_brief(there)} there, {_brief(here)} here" for name, (there, here) in found.items())
    return UserError(
        f"{process} evaluates something else{f' ({parts})' if parts else ''}: give all processes the same code and "
        "weights, one CLEARCLIP_CACHE for texts, and name device and precision"
    )


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:8]}…"


def _finished(job: Job, work: Work) -> Outcome:
    """The outcome of a run that is counted: a result that cannot be made or written costs the others nothing."""
    result = None
    try:
        result = finish(work)
        save(job, work.run, result)
    except Forgotten:  # whoever began anew will see all of it
        return Outcome(work.run)
    except UserError as error:
        return Outcome(work.run, result, error)
    except OSError as error:
        folder = work_dir(job, work.run)
        reason = f"{folder} cannot be written ({error.strerror}): make room and run again, nothing is counted twice"
        return Outcome(work.run, result, UserError(reason))
    return Outcome(work.run, result)


def _complete(job: Job, one: Pass, work: Work) -> bool:
    """Whether all images of a run are counted, once those that are awaited are."""
    if job.awaited:
        samples = one.samples(work.position, job.awaited)
        left, grown = work.ledger.missing(samples), time.monotonic()
        with signals() as stop:
            while left and work.error is None:
                if stop:
                    raise Interrupted(stop[0])
                if time.monotonic() - grown > job.patience:
                    work.error = UserError(
                        f"no other process has counted anything for {job.patience:.0f} seconds, and {len(left)} images "
                        f"are missing, such as {left[0]}: start all processes again, they go on from here"
                    )
                time.sleep(POLL_SECONDS)
                _hear(job, [work])
                before, left = left, work.ledger.missing(left)
                if len(left) < len(before):
                    grown = time.monotonic()
    return work.error is None and not work.ledger.missing(work.benchmark.samples)


def _prepare(job: Job, one: Pass, backbone: Backbone, shards: Shards) -> tuple[list[Work], list[Outcome]]:
    """All runs of a pass with their text embedded and their ledgers opened."""
    made: dict[str, Any] = {}
    texts: dict[str, Queries] = {}
    works, failed = [], []
    for run, position in zip(one.runs, one.benchmark_of):
        try:
            benchmark = one.benchmarks[position]
            segmenter = build_segmenter(run, backbone, made)
            queries = _queries(run, segmenter, texts)
            kept = find_features(run, segmenter, benchmark, made)
            meta = {"config": str(run.path), "versions": versions()}
            ledger = shards.ledger(identity(run, segmenter, queries, benchmark, kept), benchmark.classes, meta)
            decoder = segmenter.decoder(queries)
            works.append(Work(run, segmenter, queries, decoder, benchmark, position, ledger, kept=kept))
        except Exception as error:
            failed.append(Outcome(run, error=error))
    return works, failed


def _find_missing(job: Job, one: Pass, work: Work) -> None:
    """Find the images that a run lacks of this process's share, and the pictures of them."""
    mine = one.samples(work.position, job.share)
    missing = mine if job.show_dir else work.ledger.missing(mine)  # pictures are wanted of all
    if len(missing) < len(mine):
        say(
            f"{work.run.config.benchmark.name}, {work.run.method}: {len(mine) - len(missing)} of {len(mine)} images "
            "are counted already; --fresh counts them again"
        )
    work.missing = set(missing)
    if job.show_dir:
        work.pictures = _pictures(job.show_dir, work)
        work.undrawn = {sample for sample in mine if not work.pictures.has(work.benchmark.path(sample))}


def _pictures(folder: Path, work: Work) -> Pictures:
    dataset = work.benchmark.dataset
    colours, ignore_index = own_colours(dataset.metainfo), work.benchmark.evaluators.ignore_index
    key = work.ledger.run.key
    return Pictures(folder, dataset.data_prefix["img_path"], work.benchmark.classes, key, colours, ignore_index)


def open_benchmark(run: Run, opened: dict[str, Benchmark]) -> Benchmark:
    """The images and labels of a run; `opened` holds those of the runs before.

    Raises UserError, naming what is missing, unless all files are there and the classes are those of the class file.
    """
    check_runnable(run)
    settings, evaluator = run.config.test_dataloader.dataset, run.config.test_evaluator
    key = repr((settings, evaluator))
    if key not in opened:
        check_dataset(run)
        with building(run):
            dataset = DATASETS.build({**settings, "_scope_": "mmseg"})
        root = Path(settings.data_root).absolute()
        samples = tuple(_sample(dataset.get_data_info(index), root) for index in range(len(dataset)))
        opened[key] = Benchmark(settings, dataset, Evaluators(run, dataset.metainfo), samples)
    check_classes(run)
    return opened[key]


def _sample(info: dict[str, Any], root: Path) -> str:
    """The id of an image: where it is in its data set, and a checksum, for files that are replaced count again."""
    image, labels = info["img_path"], info.get("seg_map_path")
    files = [path for path in (image, labels) if path and os.path.isfile(path)]
    return f"{Path(os.path.relpath(image, root)).as_posix()}#{fingerprint(*files):08x}"


def build_segmenter(run: Run, backbone: Backbone, made: dict[str, Any]) -> Segmenter:
    """The segmenter of a run; `made` holds methods and refinements as they are written, for runs that share them."""

    def create(registry: Registry[Any], choice: Choice[Any]) -> Any:
        key = f"{registry.kind} {choice}"
        if key not in made:
            made[key] = registry.create(choice, backbone)
        return made[key]

    settings = {key: value for key, value in run.config.model.items() if key not in NO_SETTINGS}
    calibration = settings.get("calibration")
    if calibration:
        settings["calibration"] = calibration = Calibration.load(calibration)
        calibration.check_settings({"method": run.method})
    method = create(METHODS, run.spec.method)
    refinements = [create(REFINEMENTS, choice) for choice in run.spec.refinements]
    segmenter = Segmenter(**settings | {"method": method, "refinements": refinements, "backbone": backbone})
    segmenter.choice = run.spec.method
    return segmenter


def _queries(run: Run, segmenter: Segmenter, texts: dict[str, Queries]) -> Queries:
    """The queries of a run: one object for all runs of a method that look for the same, so that they share scores."""
    model = run.config.model
    key = repr((str(run.spec.method), [model.get(name) for name in TEXT]))
    if key not in texts:
        texts[key] = class_queries(segmenter, model.vocabulary)
    return texts[key]


def identity(
    run: Run, segmenter: Segmenter, queries: Queries, benchmark: Benchmark, kept: KeptImages | None = None
) -> dict[str, Any]:
    """All that decides a label of a run: where any of it differs, records are kept apart."""
    backbone = segmenter.backbone
    parts: list[Method | Refinement] = [segmenter.method, *segmenter.refinements]
    return {
        "code": source_hash(tuple(map(type, parts))),
        "weights": {
            "backbone": backbone.name,
            "hash": backbone.content_hash,
            "position": backbone.position,
            "others": [part.files() for part in parts],
        },
        "precision": str(backbone.dtype).removeprefix("torch."),
        "device": segmenter.device.type,
        "compile": backbone.compiled,
        "method": run.spec.settings,
        "protocol": {name: getattr(segmenter, name) for name in (*NUMBERS, "two_steps")}
        | {"resize": segmenter.resizer}
        | ({"long_side": segmenter.long_side} if segmenter.long_side != LONG_SIDE else {}),
        "names": [list(names) for names in load_vocabulary(run.config.model.vocabulary).names],
        "text": hashlib.sha256(queries.text.float().cpu().contiguous().numpy().tobytes()).hexdigest(),
        "query_class": list(queries.query_class),
        "benchmark": run.config.benchmark.name,
        "data": {key: value for key, value in benchmark.settings.items() if key not in ELSEWHERE},
        "ignore_index": benchmark.evaluators.ignore_index,
        **({"evaluators": repr(benchmark.evaluators.settings)} if benchmark.evaluators.others else {}),
        **({"calibration": segmenter.calibration.hash} if segmenter.calibration else {}),
        **({"features": digest(kept)} if kept else {}),
    }


@functools.cache
def source_hash(types: tuple[type, ...] = ()) -> str:
    """SHA-256 of the package's source and of the files that define `types`: code that changed starts new records."""
    package = Path(clearclip.__file__).parent
    files = {path for path in package.rglob("*.py") if path.relative_to(package).parts[0] not in ("cli", "configs")}
    files |= {Path(inspect.getfile(one)) for one in types if one.__module__ != "__main__"}
    digests = sorted(hashlib.sha256(path.name.encode() + path.read_bytes()).hexdigest() for path in files)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def finish(work: Work) -> Result:
    """The result of a run all of whose images are counted.

    Raises UserError for label maps that cannot be what they were meant to be.
    """
    run, samples = work.run, work.benchmark.samples
    images = work.ledger.images(samples)
    seconds = sum(image.seconds or 0.0 for image in images)
    pixels = [image.size[0] * image.size[1] for image in images]
    seen = [(image.extra or {}).get("evaluators") for image in images]
    known = describe(run, work.segmenter)
    confusions = work.ledger.confusions(samples)
    known |= work.benchmark.evaluators.scores(confusions, pixels, seen)
    known |= dict(
        date=datetime.now().astimezone().isoformat(timespec="seconds"),
        images=len(images),
        seconds=round(seconds, 2),
        images_per_second=round(len(images) / seconds, 3) if seconds else 0.0,
        confused=[list(pair) for pair in confused_pairs(confusions.total(), work.benchmark.classes, PAIRS)],
        record=work.ledger.run.key,
        text_hash=work.ledger.run.identity["text"],
    )
    if work.segmenter.calibration:
        known["calibration"] = _calibrated(work.segmenter.calibration, samples)
    result: Result = known  # type: ignore[assignment]
    return result


def _calibrated(calibration: Calibration, samples: Sequence[str]) -> dict[str, Any]:
    """What a result says of a calibration; a warning where it was fitted on images of the result."""
    fitted = dict(calibration.fitted)
    images = fitted.pop("images", [])
    seen = len({*images} & {*samples})
    if seen:
        say(f"the calibration was fitted on {seen} of these {len(samples)} images: their score says little of others")
    return {**fitted, "hash": calibration.hash, "fitted_images": len(images), "seen": seen}


def save(job: Job, run: Run, result: Result) -> None:
    """Write a result, and the config that repeats it, into the run's work dir."""
    folder = work_dir(job, run)
    write_result(result, folder)
    write_config(run, folder / "config.py")


def work_dir(job: Job, run: Run) -> Path:
    """Where a run leaves its result."""
    given = job.work_dirs[job.place(run)] if job.work_dirs else None
    return given or default_work_dir(run)
