"""What is measured: seconds and memory of each stage, engine and published procedure in turns, and how cost grows."""

import ctypes
import functools
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarking.inputs import make_image, make_queries, smooth_image
from benchmarking.published import published_decode, published_pass, published_stitch, published_text
from clearclip import windows
from clearclip.decode import Decoder
from clearclip.evaluation.segmentor import ClassIoUMetric
from clearclip.images import read_image
from clearclip.look import Dense
from clearclip.products import linear
from clearclip.text import embed_names

STAGES = ("decode image", "preprocess", "ViT", "stitch+decode", "metric")
TIE = 1e-5  # of a cosine: two classes closer than this are a draw after a whole network in float32


# Clocks and memory


class Laps:
    """Seconds of the stages of one pass, and the most memory that each held, in bytes above the start."""

    def __init__(self, device):
        self.device, self.seconds, self.peaks = device, {}, {}
        self.start_bytes = reset_peak(device)
        self.clock = time.perf_counter()

    def __call__(self, stage):
        synchronize(self.device)
        self.seconds[stage] = time.perf_counter() - self.clock
        peak = peak_bytes(self.device)
        self.peaks[stage] = None if peak is None else max(0, peak - self.start_bytes)
        reset_peak(self.device)
        self.clock = time.perf_counter()


def reset_peak(device):
    """Forget earlier peaks. Returns the bytes now resident, or allocated on a GPU; None where nothing tells."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        ctypes.CDLL(None).malloc_trim(0)  # what was freed but kept would hide what is allocated next
        Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes(device)


def peak_bytes(device):
    """The most bytes that were resident, or allocated on a GPU, since `reset_peak`; None where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return proc_bytes("/proc/self/status", "VmHWM") if Path("/proc/self/clear_refs").exists() else None


def available_bytes(device):
    """Memory that can still be had; None where nothing tells."""
    return torch.cuda.mem_get_info()[0] if device.type == "cuda" else proc_bytes("/proc/meminfo", "MemAvailable")


def proc_bytes(path, key):
    if not Path(path).exists():
        return None
    return next(int(line.split()[1]) * 1024 for line in Path(path).read_text().splitlines() if line.startswith(key))


def best_of(repeats, function, device):
    """The fewest seconds of some calls. Memory stays as the call before left it, as it does from image to image."""
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def synchronize(device):
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def matrix_rate(device, dtype):
    """Floating-point operations a second of a large matrix product, PyTorch's or ours: what the device can do."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = (best_of(7, product, device) for product in (lambda: torch.mm(a, b, out=out), lambda: linear(a, b)))
    return 2 * side**3 / min(seconds)


def vit_operations(backbone, count, height, width, queries):
    """Additions and multiplications in ClearCLIP's scores of `count` windows, those of matrix products alone."""
    patches = (height // backbone.patch_size) * (width // backbone.patch_size)
    tokens, d, blocks = patches + 1, backbone.width, len(backbone.blocks)
    attention = 8 * tokens * d * d + 4 * tokens * tokens * d
    feed_forward = 4 * tokens * d * backbone.blocks[0].module.mlp.c_fc.out_features
    embed, read = 6 * patches * backbone.patch_size**2 * d, 2 * patches * backbone.dim * (d + queries)
    no_keys = 2 * tokens * d * d  # of the last block
    return count * (embed + blocks * attention - no_keys + (blocks - 1) * feed_forward + read)


# An image, stage by stage


def engine_pass(segmenter, queries, path, truth, lap):
    """Labels [H, W] of an image file: what `Segmenter` does, with a lap after each stage."""
    array = read_image(path)
    lap("decode image")
    view = segmenter.view(torch.from_numpy(array).permute(2, 0, 1))
    trunks = view.trunks
    lap("preprocess")
    scores = torch.cat([segmenter.method.scores(trunk, queries.for_scores) for trunk in trunks])
    lap("ViT")
    maps = segmenter.maps(view, Dense(scores, None, whole=False), queries)
    labels = segmenter.decoder(queries).labels(maps).cpu()
    lap("stitch+decode")
    ClassIoUMetric.intersect_and_union(labels, truth, len(queries.names), 255)
    lap("metric")
    return labels


def run_case(case, backbone, segmenter, folder, repeats):
    """Rows of one image, a line a stage and one for their sum, and what is to be said of them.

    `backbone` is the reference's.
    """
    device = segmenter.device
    path, truth = make_image(case, folder)
    queries = make_queries(case.classes, segmenter)
    # Scores, scores times their scale, and their softmax, at full size: what the reference holds at once.
    held = 3 * case.classes * case.height * case.width * backbone.dtype.itemsize
    fits = (available_bytes(device) or float("inf")) > 1.2 * held
    reference, engine = [], []
    for turn in range(repeats + 1):  # the first warms up
        if fits or not turn:
            reference.append(Laps(device))
            expected, merged = published_pass(
                backbone, segmenter, queries, path, truth, reference[-1], in_strips=not fits
            )
        engine.append(Laps(device))
        labels = engine_pass(segmenter, queries, path, truth, engine[-1])
    differing, gap = compare(labels, expected, merged)

    note = f"{len(expected.unique())} classes seen, labels " + (
        f"differ at {differing} of {labels.numel():,} pixels, where the two classes are {gap:.0e} of a cosine apart"
        if differing
        else "equal"
    )
    if not fits:
        note += (
            f". The reference does not fit: it holds {held / 2**30:.0f} GiB, which is counted, not measured. It was "
            "run in strips, for its labels alone"
        )
    rows = []
    for stage, parts in [(stage, [stage]) for stage in STAGES] + [("image", STAGES)]:
        counted = [reference[1:], engine[1:]]
        times = [[sum(laps.seconds[part] for part in parts) for laps in side] for side in counted]
        peaks = [max((laps.peaks[part] or 0 for part in parts for laps in side), default=0) or None for side in counted]
        if not fits and "stitch+decode" in parts:
            peaks[0] = held
        name = f"{case.name}, {segmenter.backbone.name}"
        rows.append(make_row(name, stage, device, times, peaks, gap <= TIE, differing))
    return rows, note


def make_row(case, stage, device, times, peaks, labels_equal, differing_pixels=0):
    """A line of the report; `times` and `peaks` are the reference's and the engine's, repeats of seconds and bytes."""
    reference, engine = (statistics.median(side) if side else None for side in times)
    spreads = [(max(side) - min(side)) / 2 if side else None for side in times]
    return dict(
        case=case,
        stage=stage,
        device=device.type,
        reference_s=reference,
        engine_s=engine,
        ratio=reference / engine if reference else None,
        reference_peak_bytes=peaks[0],
        engine_peak_bytes=peaks[1],
        labels_equal=labels_equal,
        differing_pixels=differing_pixels,
        reference_spread_s=spreads[0],
        engine_spread_s=spreads[1],
    )


def compare(labels, expected, merged):
    """How many pixels differ, and how far apart the reference's scores of the two classes are there at most."""
    y, x = (labels != expected).nonzero(as_tuple=True)
    pairs = torch.stack([labels[y, x].long(), expected[y, x].long()])  # [2, n]
    gap = 0.0
    for pair in pairs.unique(dim=1).T:
        here = (pairs == pair[:, None]).all(dim=0)
        ours, theirs = F.interpolate(merged[:, pair].float().cpu(), size=labels.shape, mode="bilinear")[0]
        gap = max(gap, (ours - theirs)[y[here], x[here]].abs().max().item())
    return len(y), gap


# Text, and how the cost grows


def run_text(backbone, names, templates):
    """Rows of text, encoded and found again, and what is to be said of them."""
    embed_names(backbone, ["warm-up"], templates)
    sides = {
        "reference": lambda: published_text(backbone, names, templates),
        "cold": lambda: embed_names(backbone, names, templates).embeddings,
        "warm": lambda: embed_names(backbone, names, templates).embeddings,
    }
    laps, results = {}, {}
    for side, function in sides.items():
        laps[side] = Laps(backbone.device)
        results[side] = function().float().cpu()
        laps[side](side)
    error = max((results["reference"] - results[side]).abs().max().item() for side in ("cold", "warm"))
    case = f"{len(names)} classes of {len(templates)} prompts, {backbone.name}"
    rows = []
    for side in ("cold", "warm"):
        times, peaks = zip(*(([laps[s].seconds[s]], laps[s].peaks[s]) for s in ("reference", side)))
        rows.append(make_row(case, f"text, {side}", backbone.device, times, peaks, error <= TIE))
    return rows, f"embeddings differ by at most {error:.0e}"


def run_growth(segmenter, quick):
    """How seconds grow: {what: [(how many, seconds of the engine, seconds of the reference where it was run)]}."""
    growth = {"images": [], "windows": [], "classes": []}
    queries = make_queries(20, segmenter)
    for count in (1, 2, 4):
        for what, images, width in (("images", count, 448), ("windows", 1, 224 + 224 * count)):
            image = torch.from_numpy(smooth_image(448, width)).permute(2, 0, 1)
            call = functools.partial(segmenter.segment, [image] * images, queries)
            growth[what].append((count, best_of(2, call, segmenter.device), None))
    for classes in (20, 50, 100, 150) if quick else (20, 50, 100, 200, 400, 847):
        growth["classes"].append((classes, *decode_seconds(classes, segmenter.device)))
    return growth


def decode_seconds(classes, device, size=512):
    """Seconds of stitch+decode alone, engine and reference, for one window of random scores."""
    scores = torch.randn(1, classes, 28, 28, device=device)
    plan = windows.plan(448, 448, 448, 224, 16)
    stitcher = windows.Stitcher(device)
    decoder = Decoder(tuple(range(classes)))

    def reference():
        merged = published_stitch(
            [((0, 448, 0, 448), (0, 0, 0, 0), scores)], torch.empty(1, 3, 448, 448, device=device)
        )
        logits = F.interpolate(merged, size=(size, size), mode="bilinear")[0]
        return published_decode(logits, decoder.query_class)

    def engine():
        return decoder.labels(stitcher.maps(scores, plan, (size, size)))

    return best_of(5, engine, device), best_of(2, reference, device)
