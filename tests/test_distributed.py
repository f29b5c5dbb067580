"""dist_test.sh with two processes on the CPU, against one process."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks import SHAPES, make_benchmark, run, single_error
from test_resume import counted

from clearclip.evaluation.results import read_result
from eval import main

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("bash"), reason="dist_test.sh needs bash")]


@pytest.fixture
def data(tmp_path):
    make_benchmark(tmp_path / "data", "voc21")
    (tmp_path / "here").mkdir()
    return tmp_path / "data"


def dist_test(*arguments, data):
    return run("bash", ROOT / "dist_test.sh", *arguments, cwd=data.parent / "here", data=data)


def test_two_processes_give_the_numbers_of_one(tiny_folder, data, monkeypatch):
    """With three images: one process takes two of them."""
    config = ROOT / "configs" / "cfg_voc21.py"
    arguments = ["--backbone", f"local-dir:{tiny_folder}", "--method", "NACLIP", "--work-dir", "run"]
    arguments += ["--precision", "fp32", "--cfg-options", "model.templates=single", "model.threshold=0.4"]
    done = dist_test("voc21", "2", *arguments, data=data)
    assert done.returncode == 0, done.stderr
    two = read_result(data.parent / "here" / "run" / "result.json")
    assert re.fullmatch(r"(test: \d/[12] images, .*\n)+", done.stderr)
    assert done.stdout.count("(3 img)") == 1  # one process reports
    left = {path.name for path in (data.parent / "here").iterdir()}
    assert left == {"run", "work_dirs", "results.xlsx", "results.xlsx.lock"}

    monkeypatch.chdir(data.parent)
    monkeypatch.setenv("CLEARCLIP_DATA", str(data))
    main([str(config), *arguments, "model.device=cpu", "test_dataloader.num_workers=0"])
    one = read_result("run/result.json")
    changing = {"date", "seconds", "images_per_second"}
    assert {key: one[key] for key in one.keys() - changing} == {key: two[key] for key in two.keys() - changing}
    assert one["images"] == len(SHAPES)
    assert 0 < one["mIoU"] < 100
    assert (one["method"], one["settings"]["threshold"]) == ("NACLIP", 0.4)


def test_errors_are_said_once(data, tmp_path):
    """One of two processes ends both, and torchrun adds nothing."""
    done = dist_test(ROOT / "configs" / "cfg_voc21.py", "2", "--backbone", "local-dir:nowhere", data=data)
    assert done.returncode == 2
    assert "nowhere is not a model folder that can be used" in single_error(done.stderr)
    assert done.stdout == ""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_a_launcher_that_is_killed_takes_its_processes_along_and_a_killed_process_the_others(tiny_folder, data):
    """The first go loses its launcher, the second a process, the third is let alone."""
    root = data / "VOCdevkit/VOC2012"
    names = [f"{name}{number}" for name in SHAPES for number in range(100)]
    for name in names:
        shutil.copy(root / f"JPEGImages/{name[0]}.jpg", root / f"JPEGImages/{name}.jpg")
        shutil.copy(root / f"SegmentationClass/{name[0]}.png", root / f"SegmentationClass/{name}.png")
    (root / "ImageSets/Segmentation/val.txt").write_text("\n".join(names) + "\n")
    settings = ["model.templates=single", "model.short_side=64", "model.crop=64", "model.stride=8"]
    command = ["bash", str(ROOT / "dist_test.sh"), "voc21", "2", "--backbone", f"local-dir:{tiny_folder}"]
    command += ["--work-dir", "run", "--cfg-options", *settings, "test_dataloader.batch_size=1"]
    here = data.parent / "here"
    variables = dict(CLEARCLIP_DATA=str(data), CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", PYTHON=sys.executable)

    def start():
        before = counted(here / "work_dirs/records")
        process = subprocess.Popen(command, cwd=here, env=os.environ | variables, stderr=subprocess.PIPE, text=True)
        while counted(here / "work_dirs/records") < before + 4:
            time.sleep(0.1)
        return process, children(process)

    process, ranks = start()
    process.kill()
    process.communicate()
    began = time.monotonic()
    while any(Path("/proc", str(pid)).exists() for pid in ranks):
        assert time.monotonic() - began < 30
        time.sleep(0.1)

    process, ranks = start()
    os.kill(ranks[1], signal.SIGKILL)
    began = time.monotonic()
    said = process.communicate(timeout=60)[1]
    assert time.monotonic() - began < 30
    assert process.returncode == 2
    assert re.search(r"error: process [12] of 2 was killed by SIGKILL.*: what was counted is kept", said)
    assert "Traceback" not in said

    done = run(*command, cwd=here, data=data)
    assert done.returncode == 0, done.stderr
    assert "images are counted already" in done.stderr
    assert read_result(here / "run/result.json")["images"] == len(names)


def children(process):
    """The processes that one started and that run eval.py, as Linux has it."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if path.joinpath("stat").read_text().rpartition(")")[2].split()[1] == str(process.pid):
                found += [int(path.name)] if b"eval.py" in path.joinpath("cmdline").read_bytes() else []
    return found


def test_usage_and_missing_config(data):
    for arguments in ([], ["--help"]):
        done = dist_test(*arguments, data=data)
        assert done.returncode == 2
        assert done.stderr.startswith("usage: bash dist_test.sh CONFIG [GPUS]")
    done = dist_test(ROOT / "configs" / "cfg_voc21.py", "2", "--metod", "CLIP", data=data)
    assert done.returncode == 2
    assert done.stderr.count("usage: eval.py") == done.stderr.count("unrecognized arguments: --metod CLIP") == 1
    for number in ("0", "two", "-1", "1.5"):
        done = dist_test(ROOT / "configs" / "cfg_voc21.py", number, "--method", "CLIP", data=data)
        assert done.returncode == 2
        assert single_error(done.stderr) == f"error: GPUS must be a number of 1 or more, not '{number}'"
    done = dist_test("nowhere.py", data=data)
    assert done.returncode == 2
    assert "config nowhere.py does not exist" in single_error(done.stderr)
    done = dist_test("voc22", data=data)
    assert "no config 'voc22': protocol clearclip has" in single_error(done.stderr)
