"""Refinements, and methods that do more than a last block, beside the floor of their arithmetic.

A floor is the sum of what has to be computed, each kind at the best rate that this machine reaches in the same run on
what its caches hold: matrix products, as PyTorch counts them, at that of a large one; sums over neighbours at that of
`sum_rows`, or of `addcmul_` where it is faster; other multiply-adds, element by element, at that of `addcmul_`;
exponentials at that of a softmax. What moves through memory and what it takes to call an operator are not in it.
"""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarking.inputs import CASES, make_queries, smooth_image
from benchmarking.measure import Laps, best_of, matrix_rate
from benchmarking.report import as_columns, in_mib
from clearclip.methods.cliper import CLIPer
from clearclip.methods.resclip import ResCLIP, longest
from clearclip.products import sum_rows
from clearclip.segmenter import Segmenter

METHODS = ("ClearCLIP", "ResCLIP:sfr=false", "ResCLIP", "CLIPer")
LARGE, CLASSES = 2048, 847


def pamr_work(refinement, queries, view):
    return resizing(view) + pamr_of(view.shape, queries, refinement.iterations, 8 * len(refinement.dilations))


def pamr_of(shape, queries, iterations=10, neighbours=16):
    pixels = shape[0] * shape[1]
    return Counter(
        sums=pixels * neighbours * queries * iterations,
        elements=pixels * neighbours * 3 * 5,  # of colours: σ, then differences
        exponentials=pixels * neighbours,
    )


def tlp_work(refinement, queries, view):
    height, width = (side // max(1, round(side / refinement.grid)) for side in view.shape)
    scores = queries * height * width
    once, step = 14, 5  # passes: softmax and three agreements; two products and three sums
    return resizing(view) + Counter(
        sums=5 * scores * refinement.steps,  # a position and its four neighbours
        elements=scores * (once + step * refinement.steps),
        exponentials=scores,
    )


def lpp_work(refinement, queries, view):
    pixels, steps = view.image[0].numel(), 10
    edges = ((2 * refinement.reach + 1) ** 2 - 1) // 2
    return Counter(
        sums=pixels * queries * steps * 2 * edges,
        elements=pixels * (queries * steps * 6 + 10 * edges),
        exponentials=pixels * edges,
    )


def resizing(view):
    """Of the picture, bilinear."""
    return Counter(elements=3 * 4 * view.shape[0] * view.shape[1])


WORK = {"PAMR": pamr_work, "TLP": tlp_work, "LPP": lpp_work}


class Exponentials(TorchDispatchMode):
    """Counts those of softmaxes and activations, also where attention is one operator."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name, first = function.name().partition("::")[2], arguments[0] if arguments else None
        if "scaled_dot_product" in name or name == "_native_multi_head_attention":
            self.count += first[..., 0].numel() * arguments[1].shape[-2]
        elif name.partition(".")[0] in ("_softmax", "softmax", "silu", "silu_", "sigmoid", "exp"):
            self.count += first.numel()
        return function(*arguments, **(keywords or {}))


def method_work(method, backbone, windows, text, queries):
    """What PyTorch counts in the scores of windows, and what it does not: what is done to attention maps, and PAMR."""
    with FlopCounterMode(display=False) as counter, Exponentials() as exponentials:
        method.scores(backbone.trunk(windows), text)
    work = Counter(products=counter.get_total_flops(), exponentials=exponentials.count)
    trunk = backbone.trunk(windows)
    patches, count = trunk.grid[0] * trunk.grid[1], len(windows)
    if isinstance(method, CLIPer):
        entries = count * backbone.blocks[0].heads * (patches + trunk.prefix) ** 2
        # Summed over the layers before the last; then, for each, scaled twice, added, compared, summed and divided.
        work += Counter(elements=entries * (len(method.blocks) + 6 * (len(method.blocks) + 1)))
    if isinstance(method, ResCLIP) and method.sfr:
        steps = longest(torch.empty(1, *trunk.grid)) + 1
        work += Counter(elements=count * patches**2 * steps)  # of the ways between patches
        for _ in range(count):
            work += pamr_of(windows.shape[2:], queries)
    return work


def run(backbone):
    """A row each for an image of VOC's size, and one for the memory of PAMR with many classes on a large picture."""
    case, device = CASES["VOC20"], backbone.device
    image = torch.from_numpy(smooth_image(case.height, case.width)).permute(2, 0, 1)
    rates = measure_rates(backbone, case.classes)
    rows = []
    for name, work in WORK.items():
        segmenter, view, queries, maps = prepare(f"ClearCLIP+{name}", backbone, image, case.classes)
        (refinement,) = segmenter.refinements
        seconds = best_of(5, lambda r=refinement, a=(view, maps, queries): r(*a), device)
        rows.append(row(name, seconds, work(refinement, case.classes, view), rates))
    for name in METHODS:
        segmenter, view, queries, _ = prepare(name, backbone, image, case.classes)
        text = segmenter.method.prepare(queries.text, queries.query_class, segmenter.logit_scale)
        windows = torch.cat([trunk.images for trunk in view.trunks])
        seconds = best_of(5, lambda m=segmenter.method, w=windows, t=text: m.scores(backbone.trunk(w), t), device)
        rows.append(row(name, seconds, method_work(segmenter.method, backbone, windows, text, case.classes), rates))
    lines = [("", "seconds", "floor", "ratio", *rates)]
    for r in rows:
        parts = [f"{r['floor_parts_s'].get(kind, 0):.3f}" for kind in rates]
        lines.append((r["stage"], f"{r['seconds']:.3f}", f"{r['floor_s']:.3f}", f"{r['ratio']:.2f}x", *parts))
    print(
        f"{case.width} x {case.height} pixels, {case.classes} classes, {backbone.dtype}; a second has "
        f"{', '.join(f'{rate / 1e9:,.1f}e9 {kind}' for kind, rate in rates.items())}\n{as_columns(lines)}",
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


def row(name, seconds, work, rates):
    parts = {kind: count / rates[kind] for kind, count in work.items()}
    floor = sum(parts.values())
    return dict(
        case="refinements", stage=name, seconds=seconds, floor_s=floor, ratio=seconds / floor, floor_parts_s=parts
    )


def measure_rates(backbone, queries):
    """How much of each kind of work a second has, on what the caches hold."""
    device = backbone.device
    elements = addcmul_rate(device)
    return dict(
        products=matrix_rate(device, backbone.dtype),
        sums=max(elements, sum_rate(device, queries)),
        elements=elements,
        exponentials=softmax_rate(device),
    )


def addcmul_rate(device, size=1 << 18):
    """Multiply-adds of three maps a second."""
    a, b, c = (torch.rand(size, device=device) for _ in range(3))
    return 200 * size / best_of(5, lambda: [a.addcmul_(b, c) for _ in range(200)], device)


def sum_rate(device, queries, pixels=4096, neighbours=32):
    """Multiply-adds of sums over neighbours a second, all near each other."""
    rows, weights = torch.rand(pixels, queries, device=device), torch.rand(pixels, neighbours, device=device)
    places = torch.arange(pixels, dtype=torch.int32, device=device)[:, None]
    places = (places + torch.arange(neighbours, dtype=torch.int32, device=device)).clamp_(max=pixels - 1)
    out = torch.empty_like(rows)
    seconds = best_of(5, lambda: [sum_rows(rows, places, weights, out) for _ in range(100)], device)
    return 100 * pixels * neighbours * queries / seconds


def softmax_rate(device, rows=256, columns=785):
    """Exponentials of a softmax a second, written over what it reads."""
    scores = torch.rand(rows, columns, device=device)
    seconds = best_of(5, lambda: [torch.softmax(scores, dim=-1, out=scores) for _ in range(100)], device)
    return 100 * scores.numel() / seconds
