#!/usr/bin/env python
"""What each method costs beside CLIP: seconds an image and peak memory, in one run on the same input.

One image of VOC20's typical size, its 20 classes, the ClearCLIP protocol. Weights are random unless given: they do
not change the cost. Methods take turns, so that what else the machine does falls on all of them.
"""

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import timm
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without clearclip being installed

from benchmarking.inputs import CASES, make_backbone, make_queries, smooth_image
from benchmarking.measure import Laps
from benchmarking.report import as_columns, in_mib

from clearclip.errors import program
from clearclip.masks import MaskProvider, Masks
from clearclip.methods import list_methods
from clearclip.methods.corrclip import CorrCLIP
from clearclip.methods.proxyclip import ProxyCLIP
from clearclip.methods.textregion import TextRegion
from clearclip.paths import atomic_write
from clearclip.segmenter import Segmenter
from clearclip.vision import VISION, TimmViT

PROXY = "ProxyCLIP:vfm="


class Chequers(MaskProvider):
    """Masks like the fields of a chessboard, in place of a network's, whose cost is not counted."""

    identity = "chequers"

    def find(self, view):
        rows, columns = (torch.arange(side, dtype=torch.int32) * 6 // side for side in view.original.shape[1:])
        return Masks(1 + 6 * rows[:, None] + columns)


def make_method(name, backbone):
    """The method of that name; vision models get random weights, and masks are made up."""
    if name == "TextRegion":
        return TextRegion(backbone, Chequers())
    if name == "CorrCLIP":
        model = random_vision_model("dino_vitb8", backbone)
        return CorrCLIP(backbone, Chequers(), vfm=lambda images: sum(model.last_qkv(images)[:2]))
    if name.startswith(PROXY):
        return ProxyCLIP(backbone, vfm=random_vision_model(name.removeprefix(PROXY), backbone))
    return name


def random_vision_model(name, backbone):
    model = timm.create_model(VISION.find(name).preset["architecture"], num_classes=0, dynamic_img_size=True)
    return TimmViT(model, backbone.device, backbone.dtype)


def default_methods():
    """Every method as published, ProxyCLIP with two vision models, and one method with PAMR."""
    names = [entry.name for entry in list_methods() if entry.name not in ("CLIP", "ProxyCLIP")]
    return ["CLIP", *names, f"{PROXY}dino_vitb8", f"{PROXY}dinov2_vits14", "ClearCLIP+PAMR"]


def measure(names, backbone, repeats):
    """Rows of seconds and bytes, a method each, ratios to the first."""
    case = CASES["VOC20"]
    torch.manual_seed(0)
    image = torch.from_numpy(smooth_image(case.height, case.width)).permute(2, 0, 1)
    segmenters = {name: Segmenter(make_method(name, backbone), backbone) for name in names}
    plain = make_queries(case.classes, segmenters[names[0]])
    queries = {
        name: replace(plain, prepared=segmenter.method.prepare(plain.text, plain.query_class, segmenter.logit_scale))
        for name, segmenter in segmenters.items()
    }
    laps = {name: [] for name in names}
    for _ in range(repeats + 1):  # the first warms up
        for name, segmenter in segmenters.items():
            laps[name].append(Laps(backbone.device))
            segmenter.segment([image], queries[name])
            laps[name][-1]("image")
    seconds = {name: statistics.median(lap.seconds["image"] for lap in laps[name][1:]) for name in names}
    return [
        dict(
            method=name,
            device=backbone.device.type,
            seconds=seconds[name],
            ratio=seconds[name] / seconds[names[0]],
            peak_bytes=max((lap.peaks["image"] or 0 for lap in laps[name][1:]), default=0) or None,
        )
        for name in names
    ]


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description="Measure what each method costs beside the first one.")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="default: all, beside CLIP")
    parser.add_argument("--backbone", default="ViT-B-16")
    parser.add_argument("--pretrained", help="weights of the backbone (default: random ones, which cost the same)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--precision", default="auto", help="auto, fp32, fp16, bf16")
    parser.add_argument("--repeats", type=int, default=3, help="timed passes of each method")
    parser.add_argument("--json", metavar="FILE", help="write the figures, a list of objects, one a method")
    return parser.parse_args(argv)


@program
def main(argv=None):
    arguments = parse_arguments(argv)
    backbone = make_backbone(arguments.backbone, arguments.pretrained, arguments.device, arguments.precision)
    with torch.inference_mode():
        rows = measure(arguments.methods or default_methods(), backbone, arguments.repeats)
    print(f"{backbone.name}, {backbone.device}, {backbone.dtype}, {torch.get_num_threads()} threads; an image of VOC20")
    lines = [("method", "seconds", f"ratio to {rows[0]['method']}", "memory")]
    lines += [
        (row["method"], f"{row['seconds']:.3f}", f"{row['ratio']:.2f}x", in_mib(row["peak_bytes"])) for row in rows
    ]
    print(as_columns(lines))
    if arguments.json:
        with atomic_write(arguments.json) as temporary:
            temporary.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
