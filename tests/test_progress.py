import io
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import Dataset

import clearclip.evaluation.progress  # noqa: F401, registers the hook


class Numbers(Dataset):
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return torch.tensor(float(index))


class Identity(BaseModel):
    def forward(self, numbers, mode="tensor"):
        return list(numbers)

    def test_step(self, data):
        return list(data)


class Count(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.extend(data_samples)

    def compute_metrics(self, results):
        return {"count": len(results)}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def evaluate(work_dir, images, batch):
    runner = Runner(
        model=Identity(),
        work_dir=str(work_dir),
        test_dataloader={
            "dataset": Numbers(images),
            "batch_size": batch,
            "sampler": {"type": "DefaultSampler", "shuffle": False, "round_up": False},
        },
        test_evaluator=Count(),
        test_cfg={},
        default_hooks={"logger": None},
        custom_hooks=[{"type": "ProgressHook", "label": "voc20"}],
        experiment_name=work_dir.name,
        log_level="WARNING",
    )
    return runner.test()


def test_lines_where_stderr_is_no_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    metrics = evaluate(tmp_path, images=45, batch=2)
    lines = [line for line in sys.stderr.getvalue().splitlines() if line.startswith("voc20: ")]
    assert metrics == {"count": 45}
    assert "\r" not in sys.stderr.getvalue()
    assert [line.split(" images, ")[0] for line in lines] == [
        f"voc20: {done}/45" for done in (6, 10, 14, 18, 24, 28, 32, 36, 42, 45)
    ]
    assert all(re.search(r"images,\s+[\d.]+ images/s, \d\d:\d\d left$", line) for line in lines)


def test_slow_images_speak_every_half_minute(tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 31))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr("clearclip.evaluation.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    evaluate(tmp_path, images=30, batch=1)
    assert sys.stderr.getvalue().count("voc20: ") == 30
    assert "voc20: 1/30 images,  0.03 images/s, 14:59 left" in sys.stderr.getvalue()


def test_bar_on_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    evaluate(tmp_path, images=7, batch=3)
    last = sys.stderr.getvalue().rstrip("\n").split("\r")[-1]
    assert last.startswith("100%|")
    assert "voc20: 7/7 images" in last
    assert sys.stderr.getvalue().endswith("\n")


def one_of_two(rank, folder, images):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    with open(folder / f"{rank}.txt", "w") as sys.stderr:
        metrics = evaluate(folder / "work", images, batch=2)
    if rank == 0:
        assert metrics == {"count": images}
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_rank_0_counts_the_images_of_both(tmp_path):
    torch.multiprocessing.spawn(one_of_two, (tmp_path, 7), nprocs=2)
    lines = (tmp_path / "0.txt").read_text().splitlines()
    assert [line.split(" images")[0] for line in lines if "images" in line] == ["voc20: 4/7", "voc20: 7/7"]
    assert "images" not in (tmp_path / "1.txt").read_text()
