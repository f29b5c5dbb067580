"""Passes, records and shares of an evaluation: the digits are those of single, unbroken runs."""

import os
import shutil
import signal
import sqlite3
from collections import Counter
from pathlib import Path

import pytest
import torch
from benchmarks import SHAPES, make_benchmarks
from PIL import Image

from clearclip.backbones.base import Backbone
from clearclip.backbones.openclip import OpenCLIPBackbone
from clearclip.config import config_folder
from clearclip.errors import UserError
from clearclip.evaluation import evaluate as evaluation
from clearclip.evaluation import records
from clearclip.evaluation.evaluate import Job, evaluate_all, open_benchmark
from clearclip.evaluation.passes import Interrupted, count, plan
from clearclip.evaluation.run import load_config
from clearclip.evaluation.shards import Share
from clearclip.methods import METHODS
from clearclip.methods.final_block import FinalBlock
from clearclip.text import TextEmbeddings
from clearclip.vocabulary import load_vocabulary

pytestmark = pytest.mark.slow  # evaluations

METHODS_SHOWN = ("CLIP", "MaskCLIP", "SCLIP", "NACLIP", "ClearCLIP")
SCORES = ("mIoU", "aAcc", "mAcc", "per_class_IoU", "interval", "images")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data of all benchmarks, the same pictures in each, and embeddings of all names."""
    folder = make_benchmarks(tmp_path_factory.mktemp("passes"))
    names = {name: None for path in config_folder().glob("cls_*.txt") for name in load_vocabulary(path).queries}
    torch.manual_seed(0)
    TextEmbeddings(tuple(names), torch.randn(len(names), 48)).save(folder / "text.safetensors")
    return folder


@pytest.fixture
def make_run(folder, tiny_folder, monkeypatch):
    """`make_run("voc20", "ClearCLIP", **model settings)`"""
    monkeypatch.setenv("CLEARCLIP_DATA", str(folder))

    def make_run(dataset, method="ClearCLIP", batch_size=2, **settings):
        model = dict(method=method, backbone=f"local-dir:{tiny_folder}", device="cpu", precision="fp32")
        model |= dict(text_embeddings=str(folder / "text.safetensors"), short_side=64, crop=64, stride=32) | settings
        return load_config(dataset, model, {"test_dataloader.batch_size": batch_size})

    return make_run


def scores(outcome):
    if outcome.error:
        raise outcome.error
    return {key: outcome.result[key] for key in SCORES}


def alone(run, tmp_path):
    (outcome,) = evaluate_all(Job([run], records=tmp_path / "alone" / run.config.benchmark.name / run.method))
    return scores(outcome)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def planned(runs):
    opened = {}
    return plan([(run, open_benchmark(run, opened)) for run in runs])


def test_runs_with_common_pictures_share_a_pass(make_run):
    (one,) = planned([make_run(name, method) for name in ("voc20", "voc21") for method in ("CLIP", "SC-CLIP")])
    assert (len(one.runs), len(one.benchmarks), len(one.pictures)) == (4, 2, len(SHAPES))
    assert "voc20 + voc21: 3 images, 2 methods, 4 runs" in str(one)


def test_other_pictures_windows_and_sizes_are_other_passes(make_run):
    runs = [make_run("voc20"), make_run("city_scapes"), make_run("voc20", crop=0), make_run("voc21", short_side=80)]
    assert [len(one.runs) for one in planned(runs)] == [1, 1, 1, 1]


def test_a_picture_that_one_of_two_benchmarks_lacks(make_run, folder, tmp_path, monkeypatch):
    """Both are counted over their own images."""
    monkeypatch.setenv("CLEARCLIP_DATA", str(folder))
    runs = [make_run("voc20"), load_config("voc21", dict(make_run("voc21").config.model), limit=2)]
    (one,) = planned(runs)
    assert [len(benchmark.samples) for benchmark in one.benchmarks] == [3, 2]
    assert sorted(len(picture.places) for picture in one.pictures) == [1, 2, 2]
    images = [outcome.result["images"] for outcome in evaluate_all(Job(runs, records=tmp_path / "records"))]
    assert images == [3, 2]


def test_a_pass_gives_the_digits_of_single_runs(make_run, tmp_path, monkeypatch):
    runs = [make_run(name, method) for name in ("voc20", "voc21") for method in (*METHODS_SHOWN, "SC-CLIP", "GEM")]
    runs += [make_run("voc20", "NACLIP+PAMR:iterations=3"), make_run("voc21", threshold=0.2)]
    blocks = Counter()
    run = Backbone.run
    monkeypatch.setattr(Backbone, "run", lambda self, index, *x: (blocks.update([index]), run(self, index, *x))[1])
    together = list(evaluate_all(Job(runs, records=tmp_path / "records")))
    shared = blocks.total()
    assert [outcome.run for outcome in together] == runs
    blocks.clear()
    assert [scores(outcome) for outcome in together] == [alone(run, tmp_path) for run in runs]
    assert shared < blocks.total() / 3  # GEM has another position embedding, and so a road of its own


def test_what_is_counted_is_not_counted_again(make_run, tmp_path, monkeypatch, capsys):
    job = Job([make_run("voc20", "CLIP"), make_run("voc21")], records=tmp_path / "records")
    first = [scores(outcome) for outcome in evaluate_all(job)]
    monkeypatch.setattr(OpenCLIPBackbone, "embed", lambda *_: pytest.fail("the network ran again"))
    assert [scores(outcome) for outcome in evaluate_all(job)] == first
    assert "3 of 3 images are counted already" in capsys.readouterr().err


def test_fresh_counts_again(make_run, tmp_path, monkeypatch):
    run = make_run("voc20")
    (first,) = evaluate_all(Job([run], records=tmp_path / "records"))
    embeds, embed = Counter(), OpenCLIPBackbone.embed
    monkeypatch.setattr(OpenCLIPBackbone, "embed", lambda self, *a: (embeds.update("x"), embed(self, *a))[1])
    (second,) = evaluate_all(Job([run], records=tmp_path / "records", fresh=True))
    assert embeds["x"]
    assert scores(first) == scores(second)


@pytest.mark.parametrize(
    "change",
    [dict(method="SCLIP"), dict(crop=48), dict(logit_scale=49.0), dict(threshold=0.1), dict(resize="device"),
     dict(precision="bf16"), dict(method="ClearCLIP+PAMR")],
    ids=str,
)  # fmt: skip
def test_what_decides_a_label_has_records_of_its_own(change, make_run, tmp_path, monkeypatch):
    method = change.pop("method", "ClearCLIP")
    keys = set()
    ledger = evaluation.Shards.ledger
    monkeypatch.setattr(
        evaluation.Shards, "ledger", lambda *a: (lambda made: (keys.add(made.run.key), made)[1])(ledger(*a))
    )
    for run in (make_run("voc20"), make_run("voc20", method, **change)):
        assert not next(evaluate_all(Job([run], records=tmp_path / "records"))).error
    assert len(keys) == 2


def test_stopped_by_a_signal_it_goes_on(make_run, tmp_path, monkeypatch):
    """The images in hand are written; the same job does the rest, and gives the digits of an unbroken run."""
    run = make_run("voc20", batch_size=1)
    expected = alone(run, tmp_path)
    record = evaluation.Progress.update

    def stop(self, images):
        record(self, images)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(evaluation.Progress, "update", stop)
    job = Job([run], records=tmp_path / "records")
    with pytest.raises(Interrupted) as caught:
        list(evaluate_all(job))
    assert caught.value.number == signal.SIGTERM
    monkeypatch.setattr(evaluation.Progress, "update", record)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    (outcome,) = evaluate_all(job)
    assert scores(outcome) == expected


def test_shares_of_several_processes_make_one_result(make_run, tmp_path):
    run = make_run("voc20", batch_size=1)
    outcomes = [
        outcome
        for index in range(2)
        for outcome in evaluate_all(Job([run], records=tmp_path / "records", share=Share(index, 2)))
    ]
    assert outcomes[0].result is outcomes[0].error is None  # images of the other are missing
    assert scores(outcomes[1]) == alone(run, tmp_path)
    assert sorted(path.name for path in (tmp_path / "records").iterdir()) == ["1-of-2.sqlite", "2-of-2.sqlite"]


class Broken(FinalBlock):
    def features(self, trunk):
        return super().features(trunk) * torch.nan


def test_a_run_that_fails_does_not_take_the_others_along(make_run, tmp_path, monkeypatch):
    METHODS.entries()
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))
    METHODS.register("Broken", Broken, "not finite", "nowhere, 2024")
    runs = [make_run("voc20", "Broken"), make_run("voc20"), make_run("voc21", "CLIP")]
    broken, *others = evaluate_all(Job(runs, records=tmp_path / "records"))
    assert isinstance(broken.error, UserError)
    assert "Broken gives scores that are not finite for" in str(broken.error)
    assert [scores(outcome) for outcome in others] == [alone(run, tmp_path) for run in runs[1:]]


def test_a_damaged_label_map_ends_the_runs_of_its_benchmark_alone(make_run, folder, tmp_path, monkeypatch):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    monkeypatch.setenv("CLEARCLIP_DATA", str(data))
    path = data / "coco_object/annotations/val2017/b_instanceTrainIds.png"
    path.write_bytes(path.read_bytes()[:60])
    model = dict(make_run("voc20").config.model)
    broken, good = (load_config(name, {**model, "vocabulary": None}, {}) for name in ("coco_object", "coco_stuff164k"))
    outcomes = {outcome.run.config.benchmark.name: outcome for outcome in evaluate_all(Job([broken, good]))}
    assert str(path) in str(outcomes["coco_object"].error)
    assert outcomes["coco_stuff164k"].result["images"] == 3


def test_count_is_a_plain_count():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 6, (9, 11), generator=generator)
    truth[truth == 5] = 255
    labels = torch.randint(0, 6, (9, 11), generator=generator)  # 5 is no class
    counts = count(labels, truth, 5, 255, torch.tensor(True))
    for t in range(5):
        for p in range(6):
            assert counts[t * 6 + p] == ((truth == t) & (labels == p)).sum()
    assert counts[-2:].tolist() == [0, 1]
    truth[0, 0] = 7
    assert count(labels, truth, 5, 255, torch.tensor(False))[-2:].tolist() == [1, 0]


@pytest.mark.parametrize("text", ["3", "0/4", "5/4", "a/b", "/", "1/0", "-1/2", ""])
def test_a_share_is_one_of_several(text):
    assert Share.parse("3/16") == Share(2, 16)
    with pytest.raises(UserError, match="must be I/N"):
        Share.parse(text)


def test_shares_are_apart_and_complete():
    items = list(range(17))
    parts = [Share(index, 5).take(items) for index in range(5)]
    assert sorted(item for part in parts for item in part) == items
    nested = [Share(rank, 2).within(Share(shard, 3)).take(items) for shard in range(3) for rank in range(2)]
    assert sorted(item for part in nested for item in part) == items


def test_results_lie_in_the_work_dir(make_run, tmp_path):
    run = make_run("voc20")
    (outcome,) = evaluate_all(Job([run], [Path("here")]))
    assert Path("here/result.json").is_file()
    assert Path("work_dirs/records/1-of-1.sqlite").is_file()
    assert outcome.result["dataset"] == "voc20"


def test_each_benchmark_has_its_own_look_at_a_picture_with_an_exif_orientation(make_run, folder, tmp_path, monkeypatch):
    """One has label maps of the pixels as stored, the other of the picture as shown; they share a pass."""
    data = tmp_path / "data"
    shutil.copytree(folder / "VOCdevkit", data / "VOCdevkit")
    monkeypatch.setattr("clearclip.evaluation.loading.LoadImage._say", lambda *_: None)
    root = data / "VOCdevkit/VOC2012"
    picture, exif = Image.open(root / "JPEGImages/a.jpg"), Image.Exif()
    exif[0x0112] = 6
    picture.save(root / "JPEGImages/a.jpg", exif=exif, quality=100)
    (root / "SegmentationClassShown").mkdir()
    for path in (root / "SegmentationClass").iterdir():
        labels = Image.open(path)
        if path.stem == "a":
            labels = labels.transpose(Image.Transpose.ROTATE_270)
        labels.save(root / "SegmentationClassShown" / path.name)
    dataset = make_run("voc20"), make_run("voc21")
    monkeypatch.setenv("CLEARCLIP_DATA", str(data))
    shown = {"test_dataloader.dataset.data_prefix.seg_map_path": "SegmentationClassShown"}
    for stored_first in (True, False):
        places = [{}, shown] if stored_first else [shown, {}]
        runs = [load_config(name, dict(run.config.model), place)
                for name, run, place in zip(("voc20", "voc21"), dataset, places)]  # fmt: skip
        (_,) = planned(runs)
        kept = tmp_path / f"records{stored_first}"
        together = [scores(outcome) for outcome in evaluate_all(Job(runs, records=kept))]
        assert together == [alone(run, tmp_path / str(stored_first)) for run in runs]


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR])
def test_a_disk_that_fills_during_a_pass(code, make_run, tmp_path, monkeypatch):
    """One sentence, what was counted stays, and a second go counts the rest."""
    runs = [make_run("voc20", batch_size=1), make_run("voc21", batch_size=1)]
    written, add = [], records.Run._add

    def full(self, row):
        if len(written) == 3:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = code
            raise error
        written.append(row.sample)
        add(self, row)

    monkeypatch.setattr(records.Run, "_add", full)
    outcomes = list(evaluate_all(Job(runs, records=tmp_path / "records")))
    assert all("run again, nothing already written is lost" in str(outcome.error) for outcome in outcomes)
    assert all(isinstance(outcome.error, UserError) for outcome in outcomes)
    monkeypatch.setattr(records.Run, "_add", lambda self, row: (written.append(row.sample), add(self, row))[1])
    again = [scores(outcome) for outcome in evaluate_all(Job(runs, records=tmp_path / "records"))]
    assert len(written) == 2 * len(SHAPES)
    assert again == [alone(run, tmp_path) for run in runs]


def test_a_disk_that_is_really_full(make_run, tmp_path):
    """The size of files is limited once one image is counted, as by a quota."""
    resource = pytest.importorskip("resource")
    run, kept = make_run("voc20", batch_size=1), tmp_path / "records"
    (first,) = evaluate_all(Job([load_config("voc20", dict(run.config.model), limit=1)], records=kept))
    assert first.result["images"] == 1
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        (outcome,) = evaluate_all(Job([run], records=kept))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(outcome.error, UserError)
    assert "nothing already written is lost" in str(outcome.error)
    (outcome,) = evaluate_all(Job([run], records=kept))
    assert scores(outcome) == alone(run, tmp_path)
