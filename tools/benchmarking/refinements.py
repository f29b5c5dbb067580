"""Refinements, and methods that do more than a last block, beside the floor of their arithmetic.

The floor of a refinement is the number of its multiply-adds, element by element, at the rate of `addcmul_` on maps that
a cache holds; that of a method the matrix products that PyTorch counts in it, at the rate of a large one.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarking.inputs import CASES, make_queries, smooth_image
from benchmarking.measure import Laps, best_of, matrix_rate
from benchmarking.report import as_columns, in_mib
from clearclip.segmenter import Segmenter

METHODS = ("ClearCLIP", "ResCLIP:sfr=false", "ResCLIP", "CLIPer")
LARGE, CLASSES = 2048, 847


def pamr_operations(refinement, queries, view):
    height, width = view.shape
    neighbours = 8 * len(refinement.dilations)
    return height * width * neighbours * (queries * refinement.iterations + 3 * 5)  # of colours: σ, then differences


def tlp_operations(refinement, queries, view):
    height, width = (side // max(1, round(side / refinement.grid)) for side in view.shape)
    once, step = 14, 14  # passes: softmax and three agreements; the edges' flow, two products and three sums
    return queries * height * width * (once + step * refinement.steps)


def lpp_operations(refinement, queries, view):
    height, width = view.image.shape[1:]
    edges, steps = ((2 * refinement.reach + 1) ** 2 - 1) // 2, 10
    return height * width * (queries * steps * (2 * edges + 6) + 10 * edges)


OPERATIONS = {"PAMR": pamr_operations, "TLP": tlp_operations, "LPP": lpp_operations}


def run(backbone):
    """A row each for an image of VOC's size, and one for the memory of PAMR with many classes on a large picture."""
    case, device = CASES["VOC20"], backbone.device
    image = torch.from_numpy(smooth_image(case.height, case.width)).permute(2, 0, 1)
    rows = []
    for name, operations in OPERATIONS.items():
        segmenter, view, queries, maps = prepare(f"ClearCLIP+{name}", backbone, image, case.classes)
        (refinement,) = segmenter.refinements
        floor = operations(refinement, case.classes, view) / addcmul_rate(device)
        rows.append(row(name, best_of(3, lambda r=refinement, a=(view, maps, queries): r(*a), device), floor))
    rate = matrix_rate(device, backbone.dtype)
    for name in METHODS:
        segmenter, view, queries, _ = prepare(name, backbone, image, case.classes)
        text = segmenter.method.prepare(queries.text, queries.query_class, segmenter.logit_scale)
        windows = torch.cat([trunk.images for trunk in view.trunks])
        with FlopCounterMode(display=False) as counter:
            segmenter.method.scores(backbone.trunk(windows), text)
        seconds = best_of(3, lambda m=segmenter.method, w=windows, t=text: m.scores(backbone.trunk(w), t), device)
        rows.append(row(name, seconds, counter.get_total_flops() / rate))
    lines = [("", "seconds", "floor", "ratio")]
    lines += [(r["stage"], f"{r['seconds']:.3f}", f"{r['floor_s']:.3f}", f"{r['ratio']:.2f}x") for r in rows]
    print(
        f"{case.width} x {case.height} pixels, {case.classes} classes, {backbone.dtype}\n{as_columns(lines)}",
        flush=True,
    )
    return [*rows, large_pamr(backbone)]


def large_pamr(backbone):
    """One iteration of ten, whose memory is that of all."""
    image = torch.from_numpy(smooth_image(LARGE, LARGE)).permute(2, 0, 1)
    segmenter, view, queries, maps = prepare("ClearCLIP+PAMR:iterations=1", backbone, image, CLASSES)
    lap = Laps(backbone.device)
    segmenter.decoder(queries).labels(segmenter.refinements[0](view, maps, queries))
    lap("PAMR")
    print(
        f"PAMR, {CLASSES} classes, {LARGE} x {LARGE}, one iteration: {lap.seconds['PAMR']:.0f} s, "
        f"{in_mib(lap.peaks['PAMR'])}"
    )
    return dict(case="PAMR, many classes", stage="PAMR", seconds=lap.seconds["PAMR"], peak_bytes=lap.peaks["PAMR"])


def prepare(method, backbone, image, classes):
    """A segmenter, the view of an image, random queries, and the maps that ClearCLIP has of it."""
    segmenter, plain = Segmenter(method, backbone), Segmenter("ClearCLIP", backbone)
    queries = make_queries(classes, plain)
    view = segmenter.view(image)
    (dense,) = plain.look([view], queries)
    return segmenter, view, queries, segmenter.stitcher.maps(dense.scores, view.plan, view.shape)


def row(name, seconds, floor):
    return dict(case="refinements", stage=name, seconds=seconds, floor_s=floor, ratio=seconds / floor)


def addcmul_rate(device, size=1 << 18):
    """Multiply-adds of three maps a second."""
    a, b, c = (torch.rand(size, device=device) for _ in range(3))
    return 200 * size / best_of(5, lambda: [a.addcmul_(b, c) for _ in range(200)], device)
