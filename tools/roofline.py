#!/usr/bin/env python
"""What GPUs could do at best: kernels, operations and bytes of an image of each benchmark, and the seconds they bound.

No GPU is needed and nothing is measured. The engine runs on fake CUDA tensors in fp16, four images of a benchmark's
typical size at once, from bytes to counts, and each kernel that PyTorch would launch is noted. A kernel takes as long
as its matrix products at the GPU's rate or its bytes at the memory's, whichever is longer, and 1 µs until the next
starts. The host launches kernels meanwhile, 5 µs each ("their ms"): where that is longer it is what counts, unless a
CUDA graph launches them. Behind each time stands the share in it of the ViT's matrix products, attention's included.
"eager" is what is launched today; "compiled" what torch.compile makes of each block (`model.compile=True`); "ideal" a
compiler that sees the whole network and lets matrix products apply activations and skips.
"""

import argparse
import collections
import contextlib
import sys
from pathlib import Path
from unittest import mock

import timm
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without clearclip being installed

from benchmarking.fake_gpu import CUDA, eyes_on_fake_gpu, on_fake_gpu
from benchmarking.inputs import Case, make_backbone
from benchmarking.report import as_columns
from benchmarking.roofline import GPUS, Ledger, compiled, ideal, keeping, predict, watched

from clearclip import vision
from clearclip.errors import program
from clearclip.evaluation.passes import count
from clearclip.methods import list_methods
from clearclip.refine import REFINEMENTS
from clearclip.segmenter import Segmenter
from clearclip.text import Queries
from clearclip.vision import VISION, TimmViT

CASES = [
    Case("VOC20", 375, 500, 20), Case("VOC21", 375, 500, 21),
    Case("Context59", 375, 500, 59), Case("Context60", 375, 500, 60),
    Case("COCO-Object", 480, 640, 81), Case("COCO-Stuff", 480, 640, 171),
    Case("Cityscapes", 1024, 2048, 19, 224), Case("ADE20K", 512, 683, 150),
    Case("Context459", 375, 500, 459), Case("ADE20K-847", 512, 683, 847),
]  # fmt: skip
OTHERS = {"vfm", "masks", "sam", "model"}  # options that name another network
SEEN = ("ProxyCLIP", "GLA-CLIP", "LPOSS", "ClearCLIP+LP")  # by one vision model, of which two are counted
MODELS = ("dino_vitb8", "dinov2_vits14")


def default_methods():
    """All but what needs masks, SAM or diffusion: methods, those of a vision model, refinements."""
    alone, refining = (
        [entry.name for entry in entries if not OTHERS & entry.options.keys()]
        for entries in (list_methods(), REFINEMENTS.entries())
    )
    seen = (f"{method}:vfm={model}" for method in SEEN for model in MODELS)
    return [*alone, *seen, *(f"ClearCLIP+{name}" for name in refining), "Overview+EDGES"]


@contextlib.contextmanager
def vision_models(mode):
    """Vision models are ones on the fake GPU, with no weights."""

    def load(name, *arguments):
        with unset_fake_temporarily():  # it is made on the CPU, with numbers
            architecture = VISION.find(name).preset["architecture"]
            network = timm.create_model(architecture, num_classes=0, dynamic_img_size=True)
            model = TimmViT(network, torch.device("cpu"), torch.float32)
        return eyes_on_fake_gpu(model, mode)

    with mock.patch.object(vision, "load_vision_model", load):
        yield


def count_kernels(method, case, backbone, mode, images=4, kernels=True):
    """The ledger of a batch of images, when what geometry and names decide is on the device already."""
    with vision_models(mode), mode:
        sizes = dict(crop=case.crop, stride=case.stride, window_batch=256)
        segmenter = Segmenter(method, backbone, **sizes)
        text, query_class = torch.zeros(case.classes, backbone.dim, device=CUDA), tuple(range(case.classes))
        words = torch.zeros(len(segmenter.method.words), backbone.dim, device=CUDA)
        prepared = segmenter.method.prepare(torch.cat([text, words]), query_class, segmenter.logit_scale)
    queries = Queries(text, query_class, tuple(map(str, query_class)), prepared)
    for _ in range(2):
        picture = torch.zeros(3, case.height, case.width, dtype=torch.uint8)
        views = [segmenter.view(picture) for _ in range(images)]
        for view in views:
            for name in ("image", "original"):
                object.__setattr__(view, name, mode.from_tensor(getattr(view, name)))
        ledger = Ledger()
        with mode, watched(ledger, backbone, kernels):
            dense = segmenter.look(views, queries)
            ledger.stage = "decode"
            labels = [segmenter.decode(*pair, queries, segmenter.decoder(queries)).labels for pair in zip(views, dense)]
            ledger.stage = "count"
            truth = torch.zeros(case.height, case.width, dtype=torch.uint8)
            for one, seen in zip(labels, dense):
                count(one, truth.to(CUDA), case.classes, 255, seen.finite)
    return ledger


FORMS = {"eager": list, "compiled": compiled, "ideal": ideal}  # how launches are joined


def row(name, ledger, images):
    """A line of the tables, of one image."""
    flops = sum(launch.flops for launch in ledger.launches if launch.in_vit) / images
    moved = sum(launch.bytes for launch in ledger.launches) / images
    cells = [name, f"{flops / 1e9:,.0f}", f"{moved / 1e9:.2f}", f"{ledger.uploads / images / 1e6:.1f}"]
    seen = {(gpu, form): predict(join(ledger.launches), gpu, images) for gpu in GPUS for form, join in FORMS.items()}
    first = seen[GPUS[0], "eager"]
    cells += [f"{first.launches:.0f}", f"{first.host * 1e3:.2f}"]
    return cells + [f"{one.device * 1e3:.2f}, {one.share:.0%}" for one in seen.values()]


HEADER = ["GFLOP", "GB", "MB up", "launches", "their ms"]
HEADER += [f"{gpu.name} {form}" for gpu in GPUS for form in FORMS]


def profile(ledger, images, gpu):
    """Where the time on the device goes, by operator, in µs an image."""
    seconds, launches = collections.Counter(), collections.Counter()
    for launch in ledger:
        key = (launch.stage, launch.name + (" (ViT)" if launch.in_vit else ""))
        seconds[key] += (launch.seconds(gpu) + gpu.gap) / images
        launches[key] += 1 / images
    lines = [("kernel", "launches", "µs", "share")]
    total = sum(seconds.values())
    for (stage, name), value in seconds.most_common(24):
        cells = f"{launches[stage, name]:.1f}", f"{value * 1e6:.1f}", f"{value / total:.1%}"
        lines.append((f"{stage}: {name}", *cells))
    return as_columns(lines)


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backbone", default="ViT-B-16")
    parser.add_argument("--images", type=int, default=4, help="in a batch")
    parser.add_argument(
        "--methods", nargs="*", metavar="NAME", help="on ADE20K; default: all without masks, SAM, diffusion"
    )
    parser.add_argument("--plain", action="store_true", help="without the fused kernels of clearclip.kernels")
    parser.add_argument("--markdown", action="store_true", help="tables as Markdown has them")
    return parser.parse_args(argv)


def as_table(lines, markdown):
    if not markdown:
        return as_columns(lines)
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


@program
def main(argv=None):
    arguments = parse_arguments(argv)
    images, kernels = arguments.images, not arguments.plain
    mode = FakeTensorMode()
    with keeping():
        backbone = on_fake_gpu(make_backbone(arguments.backbone, None, "cpu", "fp32"), mode)
        ledgers = {case.name: count_kernels("ClearCLIP", case, backbone, mode, images, kernels) for case in CASES}
        ade = next(case for case in CASES if case.name == "ADE20K")
        names = default_methods() if arguments.methods is None else arguments.methods
        methods = {name: count_kernels(name, ade, backbone, mode, images, kernels) for name in names}
    print(f"{backbone.name}, fp16, {images} images at once; predicted, not measured; an image of:\n")
    print(
        as_table(
            [["benchmark", *HEADER], *(row(name, one, images) for name, one in ledgers.items())], arguments.markdown
        )
    )
    if methods:
        print("\nADE20K by:\n")
        print(
            as_table(
                [["method", *HEADER], *(row(name, one, images) for name, one in methods.items())], arguments.markdown
            )
        )
    for form, join in FORMS.items():
        print(f"\nADE20K, ClearCLIP, {GPUS[0].name}, {form}:\n")
        print(profile(join(ledgers["ADE20K"].launches), images, GPUS[0]))


if __name__ == "__main__":
    main()
