"""Real evaluations killed at random moments: what was counted stays, and the digits are those of an unbroken run."""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from benchmarks import make_benchmark

from clearclip.cli.eval import main
from clearclip.evaluation import evaluate, mmseg, records  # noqa: F401, imported once, before processes fork

SCORES = ("mIoU", "aAcc", "mAcc", "per_class_IoU", "interval", "images")
IMAGES = 24

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="processes fork here")]


@pytest.fixture
def arguments(tiny_folder, tmp_path, monkeypatch):
    """`arguments(work_dir, records)` of an evaluation of 24 images, one a batch."""
    data = tmp_path / "data"
    make_benchmark(data, "voc20")
    root = data / "VOCdevkit/VOC2012"
    names = [f"{name}{number}" for name in "abc" for number in range(IMAGES // 3)]
    for name in names:
        shutil.copy(root / f"JPEGImages/{name[0]}.jpg", root / f"JPEGImages/{name}.jpg")
        shutil.copy(root / f"SegmentationClass/{name[0]}.png", root / f"SegmentationClass/{name}.png")
    (root / "ImageSets/Segmentation/val.txt").write_text("\n".join(names) + "\n")
    monkeypatch.setenv("CLEARCLIP_DATA", str(data))
    monkeypatch.chdir(tmp_path)

    def arguments(work_dir, kept):
        return [
            "voc20", "--backbone", f"local-dir:{tiny_folder}", "--device", "cpu", "--work-dir", work_dir,
            "--records", kept, "--results", f"{work_dir}.xlsx", "--cfg-options", "model.templates=single",
            "test_dataloader.batch_size=1", "test_dataloader.num_workers=1",
        ]  # fmt: skip

    return arguments


def start(argv):
    """The evaluation in a process of its own, which says nothing on the terminal but into `said.txt`."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        torch.set_num_threads(1)
        sys.stderr = sys.stdout = open("said.txt", "w", buffering=1)  # noqa: SIM115
        main(argv)
        status = 0
    except SystemExit as end:
        status = end.code
    finally:
        os._exit(status)


def counted(folder):
    paths = (path for path in Path(folder).glob("*.sqlite") if path.stat().st_size)  # one that is being made is empty
    return sum(len(run.done()) for path in paths for run in stored(path))


def stored(path):
    with records.Records.open(path, readonly=True) as store:
        yield from store.runs()


def read(work_dir):
    result = json.loads(Path(work_dir, "result.json").read_text())
    return {key: result[key] for key in SCORES}


def test_twenty_kills(arguments):
    assert os.waitstatus_to_exitcode(os.waitpid(start(arguments("whole", "one")), 0)[1]) == 0
    moments, before, stopped = random.Random(0), 0, 0
    for _ in range(20):
        began = time.monotonic()
        pid = start(arguments("broken", "many"))
        time.sleep(moments.uniform(0.02, 1.2))
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        stopped += os.WIFSIGNALED(status)
        now = counted("many")
        assert now >= before  # nothing that was written is lost
        before = now
        assert time.monotonic() - began < 60
    assert stopped  # some were killed before they were done
    assert os.waitstatus_to_exitcode(os.waitpid(start(arguments("broken", "many")), 0)[1]) == 0
    assert counted("many") == IMAGES
    assert read("broken") == read("whole")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_a_word(number, status, arguments):
    pid = start(arguments("signalled", "kept"))
    while not counted("kept"):  # in the middle of it
        time.sleep(0.02)
    os.kill(pid, number)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status
    said = Path("said.txt").read_text()
    assert f"stopped by {number.name}: what was counted is kept; the same command goes on from there" in said
    assert 0 < counted("kept") < IMAGES
    assert os.waitstatus_to_exitcode(os.waitpid(start(arguments("signalled", "kept")), 0)[1]) == 0
    assert "images are counted already" in Path("said.txt").read_text()
    assert read("signalled")["images"] == IMAGES
