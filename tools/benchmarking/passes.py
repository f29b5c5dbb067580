"""A table of methods in one pass over the data, beside the same runs one by one.

Both sides read, resize and segment the same files, count and write records, in one process and on one backbone; the
start of a process and the loading of weights, which single runs would pay each time, are counted on neither side.
"""

import contextlib
import os
import time
from typing import NamedTuple
from unittest import mock

import torch
from PIL import Image

from benchmarking.inputs import CASES, smooth_image
from clearclip.config import config_folder
from clearclip.evaluation import evaluate
from clearclip.evaluation.evaluate import Job, evaluate_all
from clearclip.evaluation.results.record import plain
from clearclip.evaluation.run import load_config
from clearclip.text import TextEmbeddings
from clearclip.vocabulary import load_vocabulary

TABLE = ("CLIP", "MaskCLIP", "SCLIP", "NACLIP", "ClearCLIP")
ABLATION = tuple(
    f"ClearCLIP:attention={attention},residual={residual},feed_forward={feed_forward}"
    for attention in ("qq", "kk", "vv", "identity", "qk")
    for residual in "01"
    for feed_forward in ("false", "true")
)
RUNS = {
    "five methods on VOC20 and VOC21": (("voc20", "voc21"), TABLE),
    "20 cells of an ablation on VOC20": (("voc20",), ABLATION),
}
SCORES = ("mIoU", "aAcc", "mAcc", "per_class_IoU", "interval", "images")


def prepare(folder, images, dim):
    """Write pictures and label maps in VOC's layout, and random embeddings [.., dim] of its names."""
    case, root = CASES["VOC20"], folder / "VOCdevkit" / "VOC2012"
    torch.manual_seed(0)
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True, exist_ok=True)
    names = [f"{index:06}" for index in range(images)]
    for name in names:
        Image.fromarray(smooth_image(case.height, case.width)).save(root / "JPEGImages" / f"{name}.jpg")
        blocks = torch.randint(0, 21, (8, 8), dtype=torch.uint8)
        labels = blocks.repeat_interleave(64, 0).repeat_interleave(64, 1)[: case.height, : case.width]
        Image.fromarray(labels.numpy()).save(root / "SegmentationClass" / f"{name}.png")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("".join(f"{name}\n" for name in names))
    files = [config_folder() / f"cls_{name}.txt" for name in ("voc20", "voc21")]
    queries = tuple(dict.fromkeys(query for file in files for query in load_vocabulary(file).queries))
    TextEmbeddings(queries, torch.randn(len(queries), dim)).save(folder / "text.safetensors")


def measure_runs(name, benchmarks, methods, backbone, folder):
    """Seconds of all runs one by one and in one pass, their ratio, and whether the scores are equal."""
    text, device = str(folder / "text.safetensors"), str(backbone.device)
    model = dict(backbone="ViT-B-16", text_embeddings=text, device=device)
    with contextlib.chdir(folder), mock.patch.dict(os.environ, CLEARCLIP_DATA=str(folder)):
        runs = [load_config(benchmark, model | dict(method=method)) for benchmark in benchmarks for method in methods]
        with (
            mock.patch.object(evaluate, "load_backbone", return_value=backbone),
            mock.patch.object(evaluate, "say"),
        ):
            timed([runs[:1]], folder / "warm-up")
            before = timed([runs], folder / name / "before")
            alone = timed([[run] for run in runs], folder / name / "alone")
            after = timed([runs], folder / name / "after")
    return dict(
        case=name,
        runs=len(runs),
        device=backbone.device.type,
        **compared("", alone.seconds, before.seconds, after.seconds),
        **compared("cpu_", alone.cpu_seconds, before.cpu_seconds, after.cpu_seconds),
        scores_equal=alone.scores == before.scores == after.scores,
    )


def compared(prefix, alone, before, after):
    """Single runs beside the mean of a pass before and one after them: what else the machine does falls on both."""
    together = (before + after) / 2
    return {f"{prefix}single_s": alone, f"{prefix}pass_s": together, f"{prefix}ratio": alone / together}


class Timed(NamedTuple):
    """What runs gave, the seconds that passed, and those of all cores."""

    scores: list
    seconds: float
    cpu_seconds: float


def timed(jobs, records):
    """The scores of all runs, and what they took. Each job has records of its own."""
    start, cpu_start = time.perf_counter(), time.process_time()
    outcomes = []
    for number, runs in enumerate(jobs):
        outcomes += evaluate_all(Job(runs, records=records / str(number)))
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    for outcome in outcomes:
        if outcome.error:
            raise outcome.error
    scores = [{key: outcome.result[key] for key in SCORES} for outcome in outcomes]
    return Timed(plain(scores), seconds, cpu_seconds)  # None for NaN, which equals nothing
