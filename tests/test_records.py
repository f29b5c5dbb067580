"""The store of counts: what is written is there, whatever happens to the process, the file or the disk."""

import hashlib
import itertools
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import sqlite3
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from clearclip.errors import UserError
from clearclip.evaluation import records as module
from clearclip.evaluation.confusion import Confusion, Confusions, decode, encode
from clearclip.evaluation.records import (
    ABSENT,
    ImageRecord,
    Records,
    canonical,
    difference,
    identity_key,
    merge,
)
from clearclip.evaluation.segmentor import ClassIoUMetric

CLASSES = ["cat", "dog", "ship"]
IDENTITY = {"method": "ClearCLIP", "text": {"templates": "imagenet", "embeddings": "sha256:1"}}
FORK = multiprocessing.get_context("fork")


def image_record(number: int, classes: int = len(CLASSES)) -> ImageRecord:
    """The record of image `number`: the same whenever it is made."""
    matrix = np.random.default_rng(number).integers(0, 300, (classes, classes + 1))
    return ImageRecord(f"image{number:04d}", Confusion.of(matrix * (matrix > 150)), (60, 80), seconds=number / 8)


def fill(path, numbers, identity=IDENTITY) -> Path:
    with Records.open(path) as records:
        records.run(identity, CLASSES).add_many(map(image_record, numbers))
    return Path(path)


def content(path) -> list:
    """All that a store holds, in an order of its own."""
    with Records.open(path, readonly=True) as records:
        return sorted((run.key, run.identity, run.meta, run.created, run._rows()) for run in records.runs())


def only_run(records: Records) -> module.Run:
    [run] = records.runs()
    return run


# --- counts -----------------------------------------------------------------------------------------------------------

matrices = st.integers(1, 4).flatmap(
    lambda classes: arrays(
        np.int64, (classes, classes + 1), elements=st.sampled_from([0, 0, 1, 127, 128, 2**40, 2**62])
    )
)


@given(st.lists(matrices, max_size=6))
def test_counts_come_back_as_they_were_encoded(stack):
    image, cells, counts = decode([encode(Confusion.of(matrix)) for matrix in stack])
    assert {values.dtype for values in (image, cells, counts)} == {np.dtype(np.int64)}
    for number, matrix in enumerate(stack):
        own = image == number
        assert (Confusion(len(matrix), cells[own], counts[own]).dense() == matrix).all()


@pytest.mark.parametrize("blob", [b"\x81", b"\x01", b"\x01\x01\x01", b"\x01\x81"])
def test_half_a_number_is_noticed(blob):
    with pytest.raises(ValueError, match="cut short"):
        decode([b"\x01\x01", blob])


maps = arrays(np.uint8, (4, 6), elements=st.sampled_from([0, 1, 2, 255]))
predictions = arrays(np.int64, (4, 6), elements=st.sampled_from([-1, 0, 1, 2, 3, 255]))


@given(maps, predictions)
def test_a_count_is_that_of_a_plain_loop(truth, labels):
    expected = np.zeros((3, 4), int)
    for true, label in zip(truth.ravel(), labels.ravel()):
        if true != 255:
            expected[true, label if 0 <= label < 3 else 3] += 1
    assert (Confusion.count(truth, labels, 3).dense() == expected).all()


@given(st.lists(st.tuples(maps, predictions), min_size=1, max_size=4))
def test_areas_and_total_are_those_of_the_metric(pairs):
    parts = [Confusion.count(truth, labels, 3) for truth, labels in pairs]
    image, cells, counts = decode([encode(part) for part in parts])
    stacked = Confusions([str(number) for number in range(len(pairs))], 3, image, *np.divmod(cells, 4), counts)
    metric = [
        ClassIoUMetric.intersect_and_union(torch.from_numpy(labels), torch.from_numpy(truth), 3, 255).numpy()
        for truth, labels in pairs
    ]
    assert (stacked.areas().reshape(len(pairs), -1) == np.stack(metric)[:, :-2]).all()
    assert (stacked.total() == sum(part.dense() for part in parts)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Confusion.of([[1, -2], [0, 1]]), "counts -2 pixels"),
        (lambda: Confusion.of([[1.0, 2.0], [0.0, 1.0]]), "expected integers"),
        (lambda: Confusion.of([[1, 2, 3, 4]]), r"not int64 \[1, 4\]"),
        (lambda: Confusion(2, [6], [1]), r"not all in 0\.\.5"),
        (lambda: Confusion(2, [1, 1], [1, 1]), "not ascending"),
        (lambda: Confusion(2, [1, 2], [1]), "one length"),
        (lambda: Confusion.count([[2]], [[0]], classes=2), "labels 2 to 2 for 2 classes"),
        (lambda: Confusion.count([[0, 0]], [[0]], classes=2), "differ in size"),
    ],
)
def test_counts_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_benchmark_of_171_classes_is_a_small_file(tmp_path):
    generator = np.random.default_rng(0)
    with Records.open(tmp_path / "r.sqlite") as records:
        run, batch = records.run({}, [f"class {number}" for number in range(171)]), []
        for number in range(500):  # a tenth of COCO-Stuff, with more cells an image than it has
            cells = np.sort(generator.choice(171 * 172, 150, replace=False))
            confusion = Confusion(171, cells, generator.integers(1, 4000, 150))
            batch.append(ImageRecord(f"val2017/{number:012d}.png", confusion, (1000, 1000)))
        run.add_many(batch)
    assert (tmp_path / "r.sqlite").stat().st_size < 5e5  # so 5 MB in all


# --- identity ---------------------------------------------------------------------------------------------------------


def test_equal_identities_have_equal_keys():
    one = {"crop": 448, "names": ("cat", "sofa"), "scale": 50.0, "text": {"a": None, "b": True}}
    other = {"text": {"b": True, "a": None}, "scale": np.float64(50), "names": ["cat", "sofa"], "crop": np.int64(448)}
    assert canonical(one) == '{"crop":448,"names":["cat","sofa"],"scale":50,"text":{"a":null,"b":true}}'
    assert identity_key(one) == identity_key(other)
    assert identity_key(one) == "03ca35b7772ef4e14995dde11d0f9ead601e3613d25b3754cca2a8fe9297c07d"


@pytest.mark.parametrize(
    "change", [{"crop": 336}, {"scale": 50.5}, {"names": ["sofa", "cat"]}, {"text": {"a": False}}, {"new": None}]
)
def test_any_difference_makes_another_key_and_is_named(change):
    one = {"crop": 448, "names": ["cat", "sofa"], "scale": 50.0, "text": {"a": None}}
    assert identity_key(one) != identity_key(one | change)
    assert list(difference(one, one | change)) in ([*change], ["names[0]", "names[1]"], ["text.a"])


def test_a_difference_names_places_and_values():
    one = {"text": {"file": "a", "templates": 80}, "names": ["cat", "ship"], "sizes": [1, 2], "scale": 50}
    other = {"text": {"templates": 80}, "names": ["cat", "boat"], "sizes": [1], "scale": 50.0}
    expected = {"names[1]": ("ship", "boat"), "sizes": ([1, 2], [1]), "text.file": ("a", ABSENT)}
    assert difference(one, other) == expected
    assert difference(one, one) == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Path("x"), {1: 2}, {3}, b"x"])
def test_an_identity_holds_what_json_holds(value):
    with pytest.raises(TypeError, match=r"identity\.text\[1\]"):
        canonical({"text": [0, value]})


def test_a_name_that_is_no_unicode_is_named(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    with pytest.raises(UserError, match=r"caf\\udce9\.png.*rename"):
        canonical({"samples": [name]})
    with Records.open(tmp_path / "r.sqlite") as records, pytest.raises(UserError, match="rename"):
        records.run({}, CLASSES).add(name, image_record(0).confusion, (60, 80))


# --- runs -------------------------------------------------------------------------------------------------------------


def test_what_is_added_is_there_when_opened_again(tmp_path):
    path = tmp_path / "new" / "folder" / "records.sqlite"
    images = [image_record(number) for number in (2, 0, 1)]
    with Records.open(path) as records:
        run = records.run(IDENTITY, CLASSES, meta={"device": "cpu", "path": tmp_path})
        run.add("image0002", images[0].confusion, (60, 80), seconds=np.float32(0.25), extra={"loss": float("inf")})
        run.add_many(images[1:])
    assert [file.name for file in path.parent.iterdir()] == ["records.sqlite"]
    with Records.open(path, readonly=True) as records:
        run = only_run(records)
        assert run.identity == {**IDENTITY, "classes": CLASSES}
        assert run.key == identity_key(run.identity)
        assert run.classes == tuple(CLASSES)
        assert run.meta == {"device": "cpu", "path": str(tmp_path)}
        assert run.done() == {"image0000", "image0001", "image0002"}
        assert run.missing(["image0005", "image0001", "image0004"]) == ["image0005", "image0004"]
        dense = {image.sample: image.confusion.dense() for image in images}
        assert (run.total() == sum(dense.values())).all()
        first, _, last = run.images()
        assert (first.confusion.dense() == dense["image0000"]).all()
        assert (last.sample, last.size, last.seconds, last.extra) == (
            "image0002",
            (60, 80),
            0.25,
            {"loss": float("inf")},
        )
        some = run.confusions(["image0002", "image0000"])
        assert some.samples == ["image0002", "image0000"]
        assert (some.areas() == run.areas()[[2, 0]]).all()
        assert (some.areas()[0, 3] == dense["image0002"].sum(1)).all()


def test_a_run_without_images_has_areas_of_none(tmp_path):
    with Records.open(tmp_path / "r.sqlite") as records:
        run = records.run(IDENTITY, CLASSES)
        assert run.areas().shape == (0, 4, 3)
        assert run.total().shape == (3, 4)
        assert list(run.images()) == []


def test_an_image_that_is_ignored_throughout_counts_nothing(tmp_path):
    with Records.open(tmp_path / "r.sqlite") as records:
        run = records.run(IDENTITY, CLASSES)
        nothing = Confusion.count(np.full((2, 2), 255), np.zeros((2, 2)), 3)
        run.add_many([ImageRecord("a", nothing, (2, 2)), image_record(1), ImageRecord("z", nothing, (2, 2))])
        assert run.areas().sum((1, 2)).tolist() == [0, 0 + run.areas()[1].sum(), 0]
        assert (run.total() == image_record(1).confusion.dense()).all()
        assert records.verify() == []


def test_runs_that_differ_in_anything_stay_apart(tmp_path):
    with Records.open(tmp_path / "r.sqlite") as records:
        first = records.run(IDENTITY, CLASSES)
        first.add_many(map(image_record, range(3)))
        others = [records.run({**IDENTITY, "crop": 336}, CLASSES), records.run(IDENTITY, ["cat", "dog", "boat"])]
        assert [run.done() for run in others] == [set(), set()]
        assert difference(first.identity, others[1].identity) == {"classes[2]": ("ship", "boat")}
        assert records.run(dict(reversed(IDENTITY.items())), tuple(CLASSES)) == first
        assert len(records.runs()) == 3
        others[0].add_many([image_record(0)])
        assert others[0].clear() == 1
        assert (len(others[0].done()), len(first.done())) == (0, 3)


def test_images_that_are_missing_are_counted_and_named(tmp_path):
    message = r"r\.sqlite lacks 2 of the 3 images .* such as image0007: run"
    with Records.open(fill(tmp_path / "r.sqlite", range(3))) as records, pytest.raises(UserError, match=message):
        only_run(records).areas(["image0007", "image0001", "image0009"])


def test_counts_are_never_overwritten(tmp_path):
    with Records.open(fill(tmp_path / "r.sqlite", range(3))) as records:
        run, before = only_run(records), only_run(records)._rows()
        run.add_many(map(image_record, range(3)))  # the same again
        changed = ImageRecord("image0001", image_record(9).confusion, (60, 80))
        with pytest.raises(UserError, match=r"r\.sqlite and this process count image0001 differently.*--fresh"):
            run.add_many([image_record(5), changed])
        assert run._rows() == before  # image 5 neither


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1])
def test_seconds_that_cannot_be_are_refused(tmp_path, seconds):
    with Records.open(tmp_path / "r.sqlite") as records, pytest.raises(ValueError, match="seconds"):
        records.run(IDENTITY, CLASSES).add("a", image_record(0).confusion, (60, 80), seconds=seconds)


@pytest.fixture(scope="module")
def empty_run(tmp_path_factory):
    with Records.open(tmp_path_factory.mktemp("store") / "r.sqlite") as records:
        yield records.run(IDENTITY, CLASSES)


texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(texts, st.floats(0, 1e300), st.dictionaries(st.text(), st.integers()))
def test_any_id_time_and_extra_come_back(empty_run, sample, seconds, extra):
    empty_run.clear()
    empty_run.add(np.str_(sample), image_record(0).confusion, (60, 80), seconds, extra)
    [image] = empty_run.images()
    assert (image.sample, image.seconds, image.extra) == (sample, seconds, extra)


# --- merging ----------------------------------------------------------------------------------------------------------


def test_shards_in_any_order_merge_to_the_whole(tmp_path):
    whole = fill(tmp_path / "whole.sqlite", range(11))
    parts = [fill(tmp_path / f"{rank}.sqlite", range(rank, 11, 3)) for rank in range(3)]
    fill(parts[1], [0, 3])  # two images twice
    with Records.open(parts[2]) as records:  # once slower, and by another run as well
        records.run(IDENTITY, CLASSES).add("image0004", image_record(4).confusion, (60, 80), seconds=100)
        records.run({"method": "CLIP"}, CLASSES).add_many([image_record(1)])
    contents = []
    for order in itertools.permutations(parts):
        target = tmp_path / f"{len(contents)}.merged"
        assert merge(target, order) == 12
        assert merge(target, [*order, target]) == 0
        contents.append(content(target))
    assert all(each == contents[0] for each in contents)
    with Records.open(tmp_path / "0.merged") as merged, Records.open(whole) as records:
        [run], [expected] = [run for run in merged.runs() if run.identity["method"] == "ClearCLIP"], records.runs()
        assert (run.areas() == expected.areas()).all()
        assert [image.seconds for image in run.images()] == [image.seconds for image in expected.images()]


@pytest.mark.parametrize("through_target", [True, False])
def test_a_conflict_names_both_files_and_merges_nothing(tmp_path, through_target):
    one, other = fill(tmp_path / "one.sqlite", range(3)), tmp_path / "other.sqlite"
    with Records.open(other) as records:
        run = records.run(IDENTITY, CLASSES)
        run.add_many([image_record(7), ImageRecord("image0001", image_record(9).confusion, (60, 80))])
    target = one if through_target else fill(tmp_path / "target.sqlite", [20])
    before = content(target)
    with pytest.raises(UserError, match=r"one\.sqlite and .*other\.sqlite count image0001 differently"):
        merge(target, [one, other])
    assert content(target) == before


def test_a_merge_needs_sound_sources(tmp_path):
    with pytest.raises(UserError, match=r"no records at .*missing\.sqlite"):
        merge(tmp_path / "target.sqlite", [tmp_path / "missing.sqlite"])
    source = fill(tmp_path / "source.sqlite", range(3))
    spoil(source, "UPDATE images SET height = 61 WHERE sample = 'image0001'")
    with pytest.raises(UserError, match=r"source\.sqlite: the record of image0001 is damaged"):
        merge(tmp_path / "target.sqlite", [source])


# --- killed -----------------------------------------------------------------------------------------------------------

IMAGES, BATCH = 2000, 4


def write_all(path, batch: int = IMAGES, opened=None):
    """Go on with a run where it stopped."""
    with Records.open(path) as records:
        if opened:
            opened.set()
        run = records.run(IDENTITY, CLASSES)
        missing = run.missing(f"image{number:04d}" for number in range(IMAGES))
        for start in range(0, len(missing), batch):
            run.add_many(image_record(int(name[5:])) for name in missing[start : start + batch])


def seconds_a_batch(path) -> float:
    """Of this disk, at its quickest: a writer must not be done before it is killed."""
    seconds = []
    with Records.open(path) as records:
        run = records.run(IDENTITY, CLASSES)
        for first in range(0, 10 * BATCH, BATCH):
            start = time.perf_counter()
            run.add_many(map(image_record, range(first, first + BATCH)))
            seconds.append(time.perf_counter() - start)
    return min(seconds)


@pytest.mark.slow
def test_twenty_kills_lose_nothing_that_was_written(tmp_path):
    path, generator, before = tmp_path / "killed.sqlite", random.Random(0), set()
    pace = seconds_a_batch(tmp_path / "pace.sqlite")
    for _ in range(20):
        opened = FORK.Event()
        writer = FORK.Process(target=write_all, args=(path, BATCH, opened))
        writer.start()
        assert opened.wait(60)
        time.sleep(generator.uniform(0, 10) * pace)
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        with Records.open(path, readonly=True) as records:
            assert records.verify() == []
            done = set().union(*(run.done() for run in records.runs()))
        assert done >= before
        assert len(done) % BATCH == 0
        before = done
    assert 0 < len(before) < IMAGES
    write_all(path)
    write_all(tmp_path / "unbroken.sqlite")
    with Records.open(path) as one, Records.open(tmp_path / "unbroken.sqlite") as other:
        assert only_run(one) == only_run(other)
        assert only_run(one)._rows() == only_run(other)._rows()
        assert len(only_run(one).done()) == IMAGES


def die_within_a_batch(path, images: int):
    """Add images with a cache of one page, so that half a batch is in the file when the process dies."""
    records = Records.open(path)
    records._connection.execute("PRAGMA cache_size = 1")
    inserts = itertools.count()

    def watch(statement):
        if statement.startswith("INSERT INTO images") and next(inserts) == images:
            os.kill(os.getpid(), signal.SIGKILL)

    records._connection.set_trace_callback(watch)
    records.run(IDENTITY, CLASSES).add_many(image_record(number) for number in range(100, 600))


@pytest.mark.parametrize("readonly", [True, False])
def test_half_a_batch_is_rolled_back(tmp_path, readonly):
    path = fill(tmp_path / "r.sqlite", range(5))
    before, size = content(path), path.stat().st_size
    child = FORK.Process(target=die_within_a_batch, args=(path, 400))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert path.stat().st_size > size  # pages of the batch
    assert path.with_name("r.sqlite-journal").stat().st_size > 0
    with Records.open(path, readonly=readonly) as records:
        assert records.verify() == []
    assert content(path) == before


# --- several writers --------------------------------------------------------------------------------------------------


def write_share(path, rank: int, processes: int):
    with Records.open(path) as records:
        run = records.run(IDENTITY, CLASSES)
        for number in range(rank, 60, processes):
            run.add_many([image_record(number)])


def test_several_processes_write_one_file(tmp_path):
    path = tmp_path / "r.sqlite"  # made by whichever comes first
    children = [FORK.Process(target=write_share, args=(path, rank, 4)) for rank in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 4
    with Records.open(path) as one, Records.open(fill(tmp_path / "alone.sqlite", range(60))) as other:
        assert only_run(one)._rows() == only_run(other)._rows()
        assert one.verify() == []


def test_a_file_held_by_another_process_is_waited_for_then_named(tmp_path, monkeypatch):
    path = fill(tmp_path / "r.sqlite", range(2))
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.1)
    other = sqlite3.connect(path, isolation_level=None)
    with Records.open(path) as records:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UserError, match=r"r\.sqlite cannot be used .*locked.*another process"):
            only_run(records).add_many([image_record(2)])
        other.execute("ROLLBACK")
        only_run(records).add_many([image_record(2)])
        assert len(only_run(records).done()) == 3
    other.close()


# --- disks and files --------------------------------------------------------------------------------------------------


def add_for_ever(run):
    for start in itertools.count(0, 10):
        run.add_many(map(image_record, range(start, start + 10)))


def test_a_full_disk_loses_nothing_that_was_written(tmp_path):
    with Records.open(tmp_path / "r.sqlite") as records:
        run = records.run(IDENTITY, CLASSES)
        [(pages,)] = records._select("PRAGMA page_count")
        records._connection.execute(f"PRAGMA max_page_count = {pages + 4}")  # SQLite then says that the disk is full
        with pytest.raises(UserError, match=r"r\.sqlite cannot be used .*full.*make room"):
            add_for_ever(run)
        written = len(run.done())
        assert written > 0
        assert run._rows() == [module._Row.of(image_record(number)) for number in range(written)]
        assert records.verify() == []
        records._connection.execute("PRAGMA max_page_count = 100000")
        run.add_many(map(image_record, range(written + 10)))
        assert len(run.done()) == written + 10


def write_over_quota(path, limit: int):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    run = only_run(Records.open(path))
    with pytest.raises(UserError, match=r"cannot be used .*quota"):
        add_for_ever(run)
    assert len(run.done()) > 10
    assert run._rows() == [module._Row.of(image_record(number)) for number in range(len(run.done()))]


def test_a_write_that_fails_loses_nothing_that_was_written(tmp_path):
    path = fill(tmp_path / "r.sqlite", range(10))
    assert in_child(write_over_quota, path, path.stat().st_size + 20_000)
    with Records.open(path) as records:
        assert len(only_run(records).done()) > 10
        assert records.verify() == []


def in_child(function, *arguments) -> bool:
    """Whether `function` returns, in a process of its own."""
    child = FORK.Process(target=function, args=arguments)
    child.start()
    child.join()
    return child.exitcode == 0


def write_foreign(path):
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE photos (name TEXT)")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()


def write_newer(path):
    fill(path, range(3))
    spoil(path, "PRAGMA user_version = 2")


def write_other_tables(path):
    fill(path, range(3))
    spoil(path, "ALTER TABLE images ADD COLUMN colour")


def write_trigger(path):
    fill(path, range(3))
    spoil(path, "CREATE TRIGGER t AFTER INSERT ON images BEGIN DELETE FROM images WHERE sample < NEW.sample; END")


def write_view(path):
    fill(path, range(3))
    spoil(path, "CREATE VIEW v AS SELECT * FROM images")


def write_cut_short(path):
    fill(path, range(300))
    path.write_bytes(path.read_bytes()[:9000])


def spoil(path, statement: str):
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


BAD_FILES = {
    "text": (lambda path: path.write_text("method,mIoU\nClearCLIP,80.9\n" * 100), "not a database.*move it away"),
    "foreign": (write_foreign, "holds no records.*give another path"),
    "newer": (write_newer, r"newer version \(format 2, this one reads 1\).*upgrade"),
    "tables": (write_other_tables, "holds no records.*give another path"),
    "trigger": (write_trigger, "holds no records.*give another path"),
    "view": (write_view, "holds no records.*give another path"),
    "cut": (write_cut_short, r"malformed.*\.recover"),
    "folder": (lambda path: path.mkdir(), "is a folder|run an evaluation"),
    "below a file": (lambda path: path.parent.write_text(""), "cannot be written|run an evaluation"),
}


def look_at(path, readonly: bool):
    with Records.open(path, readonly) as records:
        only_run(records).areas()


@pytest.mark.parametrize("readonly", [True, False])
@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_named_and_left_alone(tmp_path, kind, readonly):
    write, message = BAD_FILES[kind]
    path = tmp_path / ("r/records.sqlite" if kind == "below a file" else "records.sqlite")
    write(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(UserError, match=rf"records\.sqlite.*({message})"):
        look_at(path, readonly)
    assert (path.read_bytes() if path.is_file() else None) == before


def test_an_empty_file_is_a_store_to_be(tmp_path):
    (tmp_path / "r.sqlite").touch()  # as a process leaves it that dies at once
    with pytest.raises(UserError, match="holds no records"):
        Records.open(tmp_path / "r.sqlite", readonly=True)
    assert len(content(fill(tmp_path / "r.sqlite", range(3)))) == 1


def test_a_missing_file_is_not_made_by_reading(tmp_path):
    with pytest.raises(UserError, match=r"no records at .*folder/r\.sqlite: run an evaluation"):
        Records.open(tmp_path / "folder" / "r.sqlite", readonly=True)
    assert list(tmp_path.iterdir()) == []


def test_reading_never_writes(tmp_path):
    path = fill(tmp_path / "r.sqlite", range(3))
    before = path.read_bytes()
    with Records.open(path, readonly=True) as records, pytest.raises(UserError, match="readonly"):
        only_run(records).add_many([image_record(7)])
    assert path.read_bytes() == before


def use_without_permission(folder: Path):
    if os.getuid() == 0:
        os.setuid(65534)
    with Records.open(folder / "r.sqlite", readonly=True) as records:
        assert len(only_run(records).done()) == 3
    with pytest.raises(UserError, match=r"r\.sqlite cannot be written: .*permission to write"):
        Records.open(folder / "r.sqlite")
    with pytest.raises(UserError, match=r"new\.sqlite cannot be written"):
        Records.open(folder / "new.sqlite")
    with pytest.raises(UserError, match=r"new\.sqlite cannot be written"):
        Records.open(folder / "deeper" / "new.sqlite")
    with pytest.raises(UserError, match=r"secret\.sqlite cannot be used .*permission"):
        Records.open(folder / "secret.sqlite", readonly=True)


def test_without_permission_to_write_reading_works():
    with tempfile.TemporaryDirectory() as name:  # pytest's own folder is closed to others
        folder = Path(name)
        fill(folder / "r.sqlite", range(3)).chmod(0o444)
        fill(folder / "secret.sqlite", range(3)).chmod(0)
        folder.chmod(0o555)
        try:
            assert in_child(use_without_permission, folder)
        finally:
            folder.chmod(0o755)


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "counts", "size", "fault"),
    [
        ([0], [-5], (60, 80), "a cell counts -5 pixels"),
        ([0, 3], [5, 0], (60, 80), "a cell counts 0 pixels"),
        ([12], [5], (60, 80), r"cells 12 to 12 are not all in 0\.\.11"),
        ([5, 4], [5, 5], (60, 80), "not ascending"),
        ([0, 1], [3000, 1801], (60, 80), "4801 pixels are counted in an image of 60x80"),
        ([], [], (0, 80), "image of 0x80"),
    ],
)
def test_verify_names_counts_that_cannot_be(tmp_path, cells, counts, size, fault):
    with Records.open(fill(tmp_path / "r.sqlite", range(3))) as records:
        assert records.verify() == []
        values = ("odd", as_varints(cells, counts), *size, None, None)
        with records._transaction():
            only_run(records)._insert(module._Row(*values, module._checksum(*values)))
        [found] = records.verify()
    assert re.search(rf"r\.sqlite: run \w+, odd: .*{fault}", found)


def as_varints(cells, counts) -> bytes:
    """What `encode` writes, of numbers that it would refuse: negative ones as 64 bits."""
    octets = []
    for distance, count in zip(np.diff(cells, prepend=0).tolist(), counts):
        for number in (distance % 2**64, count % 2**64):
            while number > 127:
                octets.append(number % 128 + 128)
                number //= 128
            octets.append(number)
    return bytes(octets)


def test_a_damaged_record_is_named_and_counted_afresh(tmp_path):
    path = fill(tmp_path / "r.sqlite", range(4))
    [expected] = [run[-1] for run in content(path)]
    spoil(path, "UPDATE images SET confusion = x'0105' WHERE sample = 'image0001'")
    spoil(path, "UPDATE images SET seconds = 'soon' WHERE sample = 'image0002'")
    with Records.open(path) as records:
        run = only_run(records)
        assert [fault.rpartition(", ")[2] for fault in records.verify()] == [
            f"image000{number}: the record is damaged" for number in (1, 2)
        ]
        with pytest.raises(UserError, match=r"r\.sqlite: the record of image0001 is damaged: run the evaluation again"):
            run.areas()
        assert len(run.areas(["image0000", "image0003"])) == 2
        missing = run.missing(f"image{number:04d}" for number in range(4))
        assert missing == ["image0001", "image0002"]
        run.add_many(image_record(int(name[5:])) for name in missing)
        assert run._rows() == expected


@pytest.mark.parametrize("change", ["identity = replace(identity, 'dog', 'dig')", "meta = '{'", "key = x'00'"])
def test_a_damaged_description_is_named(tmp_path, change):
    path = fill(tmp_path / "r.sqlite", range(3))
    spoil(path, f"UPDATE runs SET {change}")
    with (
        Records.open(path) as records,
        pytest.raises(UserError, match=r"r\.sqlite: the description of run 1 is damaged"),
    ):
        records.runs()


@pytest.mark.parametrize("identity", [[1], {"method": "x"}, {"classes": 5}, {"classes": [1]}], ids=str)
def test_a_description_of_something_else_is_named(tmp_path, identity):
    path = fill(tmp_path / "r.sqlite", range(3))
    text = canonical(identity)
    spoil(path, f"UPDATE runs SET identity = '{text}', key = '{hashlib.sha256(text.encode()).hexdigest()}'")
    with (
        Records.open(path) as records,
        pytest.raises(UserError, match=r"r\.sqlite: the description of run 1 is damaged"),
    ):
        records.runs()


def damaged(octets: bytes, generator: random.Random) -> bytes:
    """A bit flipped, some octets lost in noise, a sector of zeros, or the end missing."""
    place, sector = generator.randrange(len(octets)), bytes(512)
    noise = generator.randbytes(generator.randrange(64))
    start = place // 512 * 512
    return generator.choice(
        [
            octets[:place] + bytes([octets[place] ^ 1 << generator.randrange(8)]) + octets[place + 1 :],
            octets[:place] + noise + octets[place + len(noise) :],
            octets[:start] + sector + octets[start + 512 :],
            octets[:place],
        ]
    )


def test_a_damaged_file_gives_the_same_counts_or_a_sentence(tmp_path):
    path = fill(tmp_path / "r.sqlite", range(40))
    samples = [image_record(number).sample for number in range(40)]
    with Records.open(path) as records:
        expected = only_run(records).areas(samples)
    sound, generator, messages = path.read_bytes(), random.Random(0), []
    for attempt in range(400):
        path.write_bytes(damaged(sound, generator))
        try:
            with Records.open(path, readonly=attempt % 2 == 0) as records:
                for run in records.runs():
                    assert (run.areas(samples) == expected).all()
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > 100  # half of a small file is empty
    assert all(str(path) in message and "\n" not in message for message in messages)


def test_meta_may_hold_anything_that_can_be_written(tmp_path):
    with Records.open(tmp_path / "r.sqlite") as records:
        run = records.run({}, ["a"], meta={"path": Path("x"), "count": np.int64(3), "odd": os.fsdecode(b"\xe9")})
        assert run.meta == {"path": "x", "count": 3, "odd": os.fsdecode(b"\xe9")}
        assert json.loads(canonical(run.identity)) == {"classes": ["a"]}
