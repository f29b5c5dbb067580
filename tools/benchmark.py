#!/usr/bin/env python
"""The engine against the published procedure, stage by stage, on the same inputs: `tools/benchmark.py --quick`.

The published procedure is transcribed in benchmarking/published.py. Both sides run in one process, in turns, on the
same weights, images and text; what they label is compared pixel by pixel. The procedure runs in float32 on a CPU, in
float16 on a GPU, whatever the engine's `--precision`; of that there may be several, such as `--precision auto fp32`.

Instead of this it measures, each by an option of its own: what a table of methods costs in one pass over the data,
beside single runs (`--passes`); refinements beside the floor of their arithmetic (`--refinements`); a picture of 12
megapixels beside the network's time (`--large`); and what comes before the first pixels of a program (`--cold`).
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without clearclip being installed

from benchmarking.inputs import CASES, make_backbone
from benchmarking.measure import matrix_rate, run_case, run_growth, run_text
from benchmarking.report import as_table, draw, summary

from clearclip.backbones import choose_device, choose_precision
from clearclip.errors import program
from clearclip.paths import atomic_write
from clearclip.segmenter import Segmenter
from clearclip.vocabulary import load_templates, load_vocabulary

CLASS_FILE = Path(__file__).resolve().parents[1] / "configs" / "cls_voc20.txt"
# The cases of the first backbone, and of the others, which differ in nothing but the ViT.
FULL, QUICK = (tuple(CASES), ("VOC20", "ADE20K")), (("VOC20", "ADE20K", "COCO-Stuff"), ("VOC20",))


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description="Measure the engine against the published procedure.")
    parser.add_argument("--quick", action="store_true", help="fewer cases, repeats and prompts: minutes on two cores")
    parser.add_argument("--cases", nargs="+", metavar="CASE", help=f"any of: {', '.join(map(repr, CASES))}")
    parser.add_argument("--backbones", nargs="+", metavar="NAME", default=["ViT-B-16", "ViT-L-14"])
    parser.add_argument("--pretrained", help="weights of the backbones (default: random ones, which cost the same)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument(
        "--precision", nargs="+", default=["auto"], help="of the engine: auto, fp32, fp16, bf16, or several of these"
    )
    parser.add_argument("--repeats", type=int, help="timed passes over an image (default: 5; quick: 3)")
    parser.add_argument(
        "--passes", nargs="?", type=int, const=4, metavar="IMAGES",
        help="measure one pass for many runs beside single runs instead, on so many images (default: 4)",
    )  # fmt: skip
    parser.add_argument("--refinements", action="store_true", help="measure refinements beside their floor instead")
    parser.add_argument(
        "--large", nargs="?", type=float, const=12.0, metavar="MP",
        help="measure a picture of so many megapixels instead, from its file to files (default: 12)",
    )  # fmt: skip
    parser.add_argument("--cold", action="store_true", help="measure the start of `clearclip segment` instead")
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
    device = choose_device(arguments.device)
    usual = "fp16" if device.type == "cuda" else "fp32"
    precisions = {choose_precision(precision, device): precision for precision in arguments.precision}
    for name, precision in itertools.product(arguments.backbones, precisions.values()):
        reference = backbone = make_backbone(name, arguments.pretrained, arguments.device, usual)
        if choose_precision(precision, device) != reference.dtype:
            backbone = make_backbone(name, arguments.pretrained, arguments.device, precision)
        rate = matrix_rate(backbone.device, backbone.dtype)
        print(
            f"{backbone.name} {backbone.tag}, {backbone.device}, {backbone.dtype}, {torch.get_num_threads()} threads; "
            f"a large matrix product: {rate / 1e9:,.0f} GFLOP/s; medians of {repeats} ± half their range\n"
        )
        cases = arguments.cases or (QUICK if arguments.quick else FULL)[name != arguments.backbones[0]]
        for case in map(CASES.get, cases):
            segmenter = Segmenter(method="ClearCLIP", backbone=backbone, crop=case.crop, stride=case.stride)
            found, note = run_case(case, reference, segmenter, folder, repeats)
            if len(precisions) > 1:
                found = [{**row, "case": f"{row['case']}, {precision}"} for row in found]
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


def run_passes(arguments, folder):
    """Rows of one pass beside single runs, printed as they come."""
    from benchmarking.passes import RUNS, measure_runs, prepare

    backbone = first_backbone(arguments)
    prepare(Path(folder), arguments.passes, backbone.dim)
    print(
        f"{backbone.name} {backbone.tag}, {backbone.device}, {backbone.dtype}, {torch.get_num_threads()} threads; "
        f"{arguments.passes} images of VOC's size, from files to records; process start and weights counted nowhere"
    )
    rows = []
    for name, (benchmarks, methods) in RUNS.items():
        row = measure_runs(name, benchmarks, methods, backbone, Path(folder))
        rows.append(row)
        equal = "equal in every digit" if row["scores_equal"] else "NOT EQUAL"
        print(
            f"{name}: {row['runs']} single runs {row['single_s']:.1f} s, one pass {row['pass_s']:.1f} s, "
            f"{row['ratio']:.1f}x, of the cores' time {row['cpu_ratio']:.1f}x; scores {equal}",
            flush=True,
        )
    return rows


def first_backbone(arguments):
    return make_backbone(arguments.backbones[0], arguments.pretrained, arguments.device, arguments.precision[0])


def run_extra(arguments, folder):
    """Rows of `--refinements`, `--large` and `--cold`, printed as they come."""
    from benchmarking import cold, large, refinements

    rows = []
    with torch.inference_mode():
        if arguments.refinements:
            rows += refinements.run(first_backbone(arguments))
        if arguments.large:
            rows += large.run(first_backbone(arguments), arguments.large, Path(folder))
    if arguments.cold:
        rows += cold.run(arguments.pretrained or "openai-int8", arguments.precision[0], Path(folder))
    return rows


@program
def main(argv=None):
    arguments = parse_arguments(argv)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.refinements or arguments.large or arguments.cold:
            rows = run_extra(arguments, folder)
        elif arguments.passes:
            rows = run_passes(arguments, folder)
        else:
            with torch.inference_mode():
                rows, growth = run(arguments, folder)
            draw(rows, growth, arguments.picture)
            print(f"picture: {arguments.picture}")
    if arguments.json:
        with atomic_write(arguments.json) as temporary:
            temporary.write_text(json.dumps(rows, indent=1) + "\n")
        print(f"figures: {arguments.json}")


if __name__ == "__main__":
    main()
