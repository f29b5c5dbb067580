#!/usr/bin/env python
"""The engine against the published procedure, stage by stage, on the same inputs: `tools/benchmark.py --quick`.

The published procedure is transcribed here as plainly as its papers' pipelines have it: windows one by one, the last
block run twice, scores of all classes at full size, 77-token prompts class by class, nothing kept. Both sides run in
one process, in turns, on the same weights, images and text; what they label is compared pixel by pixel. The procedure
runs in its device's usual precision, whatever the engine's `--precision`.
"""

import argparse
import ctypes
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import cv2
import open_clip
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without clearclip being installed

from clearclip import windows
from clearclip.backbones import choose_device, choose_precision, load_backbone
from clearclip.backbones.openclip import OpenCLIPBackbone
from clearclip.decode import Decoder
from clearclip.errors import UserError, program
from clearclip.evaluation.segmentor import ClassIoUMetric, IoUMetric
from clearclip.images import read_image, resized_shape
from clearclip.paths import atomic_write
from clearclip.segmenter import Dense, Segmenter
from clearclip.text import Queries, embed_names
from clearclip.view import normalise
from clearclip.vocabulary import load_templates, load_vocabulary
from clearclip.weights import Checkpoint

STAGES = ("decode image", "preprocess", "ViT", "stitch+decode", "metric")
TIE = 1e-5  # of a cosine: two classes closer than this are a draw after a whole network in float32


@dataclass(frozen=True)
class Case:
    """An image of a benchmark's typical size, its classes and its windows."""

    name: str
    height: int
    width: int
    classes: int
    crop: int = 448
    suffix: str = ".jpg"
    stride: int = 224


CASES = {
    case.name: case
    for case in (
        Case("VOC20", 375, 500, 20),
        Case("ADE20K", 512, 683, 150),
        Case("COCO-Stuff", 480, 640, 171),
        Case("Cityscapes", 1024, 2048, 19, 224, ".png"),
        Case("847 classes, 1 MP", 1024, 1024, 847),
        Case("847 classes, 4 MP", 2048, 2048, 847),
    )
}
CLASS_FILE = Path(__file__).resolve().parents[1] / "configs" / "cls_voc20.txt"
# The cases of the first backbone, and of the others, which differ in nothing but the ViT.
FULL, QUICK = (tuple(CASES), ("VOC20", "ADE20K")), (("VOC20", "ADE20K", "COCO-Stuff"), ("VOC20",))


# The published procedure


def published_text(backbone, names, templates):
    """[Q, dim]: class by class, each prompt at its full 77 tokens."""
    rows = []
    for name in names:
        tokens = backbone.tokenizer([template.format(name) for template in templates]).to(backbone.device)
        embeddings = F.normalize(backbone.text_tower(tokens), dim=-1)
        rows.append(F.normalize(embeddings.mean(dim=0), dim=-1))
    return torch.stack(rows)


def published_preprocess(bgr, backbone):
    """Resize rule (2048, 448), then RGB, normalised: [1, 3, h, w]."""
    height, width = bgr.shape[:2]
    factor = min(2048 / max(height, width), 448 / min(height, width))
    resized = cv2.resize(bgr, (int(width * factor + 0.5), int(height * factor + 0.5)), interpolation=cv2.INTER_LINEAR)
    image = torch.from_numpy(resized).permute(2, 0, 1).to(backbone.device).float().flip(0)
    mean, std = (torch.tensor(s, device=image.device)[:, None, None] * 255 for s in (backbone.mean, backbone.std))
    return ((image - mean) / std).to(backbone.dtype)[None]


def published_windows(height, width, crop, stride):
    """(y1, y2, x1, x2) of each window, the last of a row or column shifted back inside."""
    for row in range(max(height - crop + stride - 1, 0) // stride + 1):
        for column in range(max(width - crop + stride - 1, 0) // stride + 1):
            y2, x2 = min(row * stride + crop, height), min(column * stride + crop, width)
            yield max(y2 - crop, 0), y2, max(x2 - crop, 0), x2


def published_scores(visual, window, text):
    """Cosine scores [1, Q, h, w] of ClearCLIP for one window [1, 3, H, W]."""
    x = visual.conv1(window)
    grid = x.shape[2:]
    x = torch.cat([visual.class_embedding.expand(1, 1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    position = visual.positional_embedding
    if x.shape[1] != len(position):
        side = int((len(position) - 1) ** 0.5)
        patches = position[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        scale = ((grid[0] + 0.1) / side, (grid[1] + 0.1) / side)
        patches = F.interpolate(patches, scale_factor=scale, mode="bicubic")
        position = torch.cat([position[:1], patches.permute(0, 2, 3, 1).flatten(0, 2)])
    x = visual.ln_pre(x + position)
    for block in visual.transformer.resblocks:  # what the last one gives is thrown away
        entering, x = x, block(x)
    attention = block.attn
    qkv = F.linear(block.ln_1(entering), attention.in_proj_weight, attention.in_proj_bias)
    q, _, v = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [1, heads, 1+N, d]
    weights = (q @ q.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    x = attention.out_proj((weights @ v).transpose(1, 2).flatten(2))
    features = visual.ln_post(x)[:, 1:] @ visual.proj
    features = features / features.norm(dim=-1, keepdim=True)
    return (features @ text.T).transpose(1, 2).unflatten(2, grid)


def published_vit(visual, image, text, crop, stride):
    """The windows of an image [1, 3, h, w], one by one: where each lies, its padding to patches, its scores."""
    patch = visual.patch_size[0]
    results = []
    for y1, y2, x1, x2 in published_windows(*image.shape[2:], crop, stride):
        down, right = -(y2 - y1) % patch, -(x2 - x1) % patch
        padding = (right // 2, right - right // 2, down // 2, down - down // 2)
        scores = published_scores(visual, F.pad(image[:, :, y1:y2, x1:x2], padding), text)
        results.append(((y1, y2, x1, x2), padding, scores))
    return results


def published_stitch(results, image):
    """Mean scores [1, Q, h, w] at the pixels of the resized image, summed as MMSegmentation's slide inference does."""
    total = image.new_zeros(1, results[0][2].shape[1], *image.shape[2:])
    count = image.new_zeros(1, 1, *image.shape[2:])
    for (y1, y2, x1, x2), (left, right, top, bottom), scores in results:
        padded = (y2 - y1 + top + bottom, x2 - x1 + left + right)
        scores = F.interpolate(scores, size=padded, mode="bilinear")
        scores = scores[:, :, top : padded[0] - bottom, left : padded[1] - right]
        total += F.pad(scores, (x1, image.shape[3] - x2, y1, image.shape[2] - y2))
        count[:, :, y1:y2, x1:x2] += 1
    return total / count


def published_decode(logits, query_class, logit_scale=50.0, threshold=0.0):
    """Scores [Q, H, W] at full size to labels [H, W]."""
    logits = logits * logit_scale
    probabilities = logits.softmax(dim=0)
    classes = max(query_class) + 1
    if classes != len(query_class):
        owner = F.one_hot(torch.tensor(query_class, device=logits.device)).T[:, :, None, None]  # [C, Q, 1, 1]
        probabilities = (owner * probabilities).max(dim=1).values
    labels = probabilities.argmax(dim=0)
    labels[probabilities.max(dim=0).values < threshold] = 0
    return labels


def published_pass(backbone, segmenter, queries, path, truth, lap, in_strips=False):
    """Labels [H, W] of an image file, and the scores they come from at the resized image's pixels [1, Q, h, w]."""
    bgr = cv2.imread(str(path))
    lap("decode image")
    image = published_preprocess(bgr, backbone)
    lap("preprocess")
    results = published_vit(backbone.visual, image, queries.text.to(backbone.dtype), segmenter.crop, segmenter.stride)
    lap("ViT")
    merged = published_stitch(results, image)
    shape = bgr.shape[:2]
    if in_strips:
        labels = decode_in_strips(merged, shape, queries.query_class)
    else:
        logits = F.interpolate(merged, size=shape, mode="bilinear")[0]
        labels = published_decode(logits, queries.query_class, segmenter.logit_scale, segmenter.threshold)
    labels = labels.cpu()
    lap("stitch+decode")
    IoUMetric.intersect_and_union(labels, truth, len(queries.names), 255)
    lap("metric")
    return labels, merged


def decode_in_strips(merged, shape, query_class, rows=256, queries=32):
    """What `published_decode` gives, where the scores at full size do not fit into memory."""
    strips = []
    for y in range(0, shape[0], rows):
        resized = (F.interpolate(part, size=shape, mode="bilinear") for part in merged.split(queries, dim=1))
        strip = torch.cat([part[0, :, y : y + rows].clone() for part in resized])
        strips.append(published_decode(strip, query_class))
    return torch.cat(strips)


# The engine


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


# Measuring


class Laps:
    """Seconds of the stages of one pass, and the most memory that each held, in bytes above the start."""

    def __init__(self, device):
        self.device, self.seconds, self.peaks = device, {}, {}
        self.start_bytes = reset_peak(device)
        self.clock = time.perf_counter()

    def __call__(self, stage):
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()
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
    """The fewest seconds of some calls."""
    times = []
    for _ in range(repeats):
        laps = Laps(device)
        function()
        laps("call")
        times.append(laps.seconds["call"])
    return min(times)


def matrix_rate(device, dtype):
    """Floating-point operations a second of a large matrix product: what the device can do."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / best_of(7, lambda: torch.mm(a, b, out=out), device)


def vit_operations(backbone, count, height, width, queries):
    """Additions and multiplications in ClearCLIP's scores of `count` windows, those of matrix products alone."""
    patches = (height // backbone.patch_size) * (width // backbone.patch_size)
    tokens, d, blocks = patches + 1, backbone.width, len(backbone.blocks)
    attention = 8 * tokens * d * d + 4 * tokens * tokens * d
    feed_forward = 4 * tokens * d * backbone.blocks[0].module.mlp.c_fc.out_features
    embed, read = 6 * patches * backbone.patch_size**2 * d, 2 * patches * backbone.dim * (d + queries)
    return count * (embed + blocks * attention + (blocks - 1) * feed_forward + read)


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


# Inputs


def smooth_image(height, width):
    """Random colours [height, width, 3], uint8, that change slowly."""
    small = torch.rand(1, 3, height // 48 + 2, width // 48 + 2)
    large = F.interpolate(small, size=(height, width), mode="bicubic").clamp(0, 1)[0]
    return (large * 255).byte().permute(1, 2, 0).contiguous().numpy()


def make_image(case, folder):
    """An image file and its ground truth [H, W]."""
    torch.manual_seed(0)
    path = Path(folder) / f"{case.height}x{case.width}{case.suffix}"
    cv2.imwrite(str(path), smooth_image(case.height, case.width))
    blocks = torch.randint(0, case.classes, (1, 1, 8, 8)).float()
    return path, F.interpolate(blocks, size=(case.height, case.width))[0, 0].int()


def make_queries(classes, segmenter):
    """Random unit text near what the model sees, so that many classes win somewhere: with random weights all
    features point nearly one way, and any other text would give the whole image to one class."""
    torch.manual_seed(1)
    images = torch.stack([torch.from_numpy(smooth_image(224, 224)).permute(2, 0, 1) for _ in range(4)])
    pixels = torch.stack([normalise(image, segmenter.backbone) for image in images])
    features = segmenter.method.features(segmenter.backbone.trunk(pixels)).flatten(0, 2).float()
    features = F.normalize(features, dim=-1)
    spread = features - features.mean(dim=0)
    mixed = torch.randn(classes, len(spread)).to(spread) @ spread
    return Queries(F.normalize(mixed, dim=-1), tuple(range(classes)), tuple(f"class {i}" for i in range(classes)))


def make_backbone(name, pretrained, device, precision):
    """The named weights, or random ones of the real architecture: what they are does not change the cost."""
    if pretrained or name.startswith("local-dir:"):
        return load_backbone(name, pretrained or "openai", device, precision)
    config = open_clip.get_model_config(name)
    if config is None:
        raise UserError(f"unknown backbone {name!r}; use an OpenCLIP ViT such as ViT-B-16")
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(quick_gelu=True, **{k: v for k, v in config.items() if k != "custom_text"})

    class RandomBackbone(OpenCLIPBackbone):
        content_hash = "random weights"

        def load_image_tower(self):
            return model.visual

        def load_text_tower(self):
            return model.text

    device = choose_device(device)
    return RandomBackbone(Checkpoint(name, "random", name, Path(), config), device, choose_precision(precision, device))


# Reporting


def as_table(rows):
    """The rows of one case for a terminal."""
    lines = [("", "reference", "engine", "ratio", "memory, reference", "engine")]
    for row in rows:
        lines.append(
            (
                row["stage"],
                *(in_seconds(row[f"{side}_s"], row[f"{side}_spread_s"]) for side in ("reference", "engine")),
                f"{row['ratio']:.1f}x" if row["ratio"] else "-",
                *(in_mib(row[f"{side}_peak_bytes"]) for side in ("reference", "engine")),
            )
        )
    return as_columns(lines)


def as_columns(lines):
    """Lines of cells, as text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)


def in_seconds(median, spread):
    return "-" if median is None else f"{median:.4f} ± {spread:.4f} s"


def in_mib(count):
    return "-" if count is None else f"{count / 2**20:,.1f} MiB"


def summary(rows, segmenter, case, rate):
    """Images a second, the rate of the ViT beside that of a matrix product, and the share of all else."""
    vit, image = (next(row for row in rows if row["stage"] == stage) for stage in ("ViT", "image"))
    resized = resized_shape(case.height, case.width, segmenter.short_side)
    plan = windows.plan(*resized, segmenter.crop, segmenter.stride, segmenter.backbone.patch_size)
    reached = vit_operations(segmenter.backbone, len(plan), *plan.window_shape, case.classes) / vit["engine_s"]
    rates = [f"{1 / image[side]:.3f}" if image[side] else "-" for side in ("reference_s", "engine_s")]
    return (
        f"images a second: {rates[0]}, engine {rates[1]}; engine's ViT: {reached / 1e9:,.0f} GFLOP/s, "
        f"{reached / rate:.0%} of the rate of a large matrix product; all but the ViT: "
        f"{1 - vit['engine_s'] / image['engine_s']:.1%} of an image"
    )


def draw(rows, growth, path):
    """Stages of each case on both sides, and below how the cost grows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = {"reference": "#b3b3b3", "engine": "#1f6fb4"}
    cases = list(dict.fromkeys(row["case"] for row in rows if row["stage"] in STAGES))
    wide = 4 if len(cases) > 3 else 3
    high = -(-len(cases) // wide)
    figure, axes = plt.subplots(
        high + 1, wide, figsize=(3.7 * wide, 3.7 * (high + 1)), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(cases) : -wide].tolist() + axes.flat[len(growth) - wide :].tolist():
        axis.set_visible(False)
    for axis, case in zip(axes.flat, cases):
        mine = [row for row in rows if row["case"] == case]
        for offset, side in ((-0.2, "reference"), (0.2, "engine")):
            values = [row[f"{side}_s"] or 0 for row in mine]
            axis.bar([i + offset for i in range(len(mine))], values, 0.4, label=side, color=colours[side])
        for i, row in enumerate(mine):
            if row["ratio"]:
                top = max(row["reference_s"], row["engine_s"])
                axis.annotate(f"{row['ratio']:.1f}x", (i, top), ha="center", va="bottom", fontsize=8)
        axis.set_xticks(range(len(mine)), [row["stage"] for row in mine], rotation=45, ha="right")
        axis.set(yscale="log", ylabel="seconds", title=case)
        axis.margins(y=0.15)
        axis.legend(fontsize=8)
    titles = {
        "images": "images in one call, engine",
        "windows": "windows of one image, engine",
        "classes": "classes: stitch+decode, 512 x 512",
    }
    for axis, (what, points) in zip(axes[-1], growth.items()):
        counts, engine, reference = zip(*points)
        axis.plot(counts, [engine[-1] * n / counts[-1] for n in counts], ":", color="#555555", label="proportional")
        axis.plot(counts, engine, "o-", color=colours["engine"], label="engine")
        if all(reference):
            axis.plot(counts, reference, "o-", color=colours["reference"], label="reference")
            axis.set(xscale="log", yscale="log")
            axis.minorticks_off()
        else:
            axis.set(xlim=(0, None), ylim=(0, None))
        axis.set_xticks(counts, map(str, counts))
        axis.set(xlabel=what, ylabel="seconds", title=titles[what])
        axis.legend(fontsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
    plt.close(figure)


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description="Measure the engine against the published procedure.")
    parser.add_argument("--quick", action="store_true", help="fewer cases, repeats and prompts: minutes on two cores")
    parser.add_argument("--cases", nargs="+", metavar="CASE", help=f"any of: {', '.join(map(repr, CASES))}")
    parser.add_argument("--backbones", nargs="+", metavar="NAME", default=["ViT-B-16", "ViT-L-14"])
    parser.add_argument("--pretrained", help="weights of the backbones (default: random ones, which cost the same)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--precision", default="auto", help="of the engine: auto, fp32, fp16, bf16")
    parser.add_argument("--repeats", type=int, help="timed passes over an image (default: 5; quick: 3)")
    parser.add_argument("--json", metavar="FILE", help="write the figures, a list of objects, one a case and stage")
    parser.add_argument("--picture", metavar="FILE", default="benchmark.png", help="default: benchmark.png")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.cases or ()) - set(CASES):
        parser.error(f"unknown case {', '.join(sorted(unknown))}; known are {', '.join(CASES)}")
    return arguments


def run(arguments, folder):
    """All rows, printed as they come, and the growth of the cost."""
    rows, growth = [], {}
    repeats = arguments.repeats or (3 if arguments.quick else 5)
    for name in arguments.backbones:
        reference = make_backbone(name, arguments.pretrained, arguments.device, "auto")
        backbone = reference
        if choose_precision(arguments.precision, reference.device) != reference.dtype:
            backbone = make_backbone(name, arguments.pretrained, arguments.device, arguments.precision)
        rate = matrix_rate(backbone.device, backbone.dtype)
        print(
            f"{backbone.name} {backbone.tag}, {backbone.device}, {backbone.dtype}, {torch.get_num_threads()} threads; "
            f"a large matrix product: {rate / 1e9:,.0f} GFLOP/s; medians of {repeats} ± half their range\n"
        )
        cases = arguments.cases or (QUICK if arguments.quick else FULL)[name != arguments.backbones[0]]
        for case in map(CASES.get, cases):
            segmenter = Segmenter(method="ClearCLIP", backbone=backbone, crop=case.crop, stride=case.stride)
            found, note = run_case(case, reference, segmenter, folder, repeats)
            rows += found
            print(f"{found[0]['case']}: {case.width} x {case.height} pixels, {case.classes} classes, {note}")
            print(f"{as_table(found)}\n{summary(found, segmenter, case, rate)}\n", flush=True)
        if growth:
            continue
        growth = run_growth(Segmenter(method="ClearCLIP", backbone=backbone), arguments.quick)
        if not backbone.text_stand_in:
            names = load_vocabulary(CLASS_FILE).queries[: 3 if arguments.quick else None]
            with mock.patch.dict(os.environ, CLEARCLIP_CACHE=folder):  # text is embedded here and now
                found, note = run_text(reference, names, load_templates("imagenet80"))
            rows += found
            print(f"{found[0]['case']}: {note}\n{as_table(found)}\n", flush=True)
    return rows, growth


@program
def main(argv=None):
    arguments = parse_arguments(argv)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        rows, growth = run(arguments, folder)
    draw(rows, growth, arguments.picture)
    print(f"picture: {arguments.picture}")
    if arguments.json:
        with atomic_write(arguments.json) as temporary:
            temporary.write_text(json.dumps(rows, indent=1) + "\n")
        print(f"figures: {arguments.json}")


if __name__ == "__main__":
    main()
