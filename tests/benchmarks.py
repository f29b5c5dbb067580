"""Tiny data sets in the layouts of the eight benchmarks, three images each; and the programs run on them."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SHAPES = {"a": (48, 64), "b": (75, 50), "c": (56, 56)}  # height, width; one shape each


@dataclass(frozen=True)
class Layout:
    """Where a benchmark keeps its files, `{}` being an image's name, and which labels they hold besides 255."""

    image: str
    label: str
    labels: range
    split: str | None = None

    def files(self, root: Path) -> list[tuple[Path, Path]]:
        """Image and label map of each image below the data root."""
        return [(root / self.image.format(name), root / self.label.format(name)) for name in SHAPES]


VOC, CONTEXT, ADE = "VOCdevkit/VOC2012", "VOCdevkit/VOC2010", "ade/ADEChallengeData2016"
PASCAL = (f"{VOC}/JPEGImages/{{}}.jpg", f"{VOC}/SegmentationClass/{{}}.png")
PASCAL_CONTEXT = (f"{CONTEXT}/JPEGImages/{{}}.jpg", f"{CONTEXT}/SegmentationClassContext/{{}}.png")
PASCAL_SPLIT = f"{VOC}/ImageSets/Segmentation/val.txt"
CONTEXT_SPLIT = f"{CONTEXT}/ImageSets/SegmentationContext/val.txt"
LAYOUTS = {
    "voc20": Layout(*PASCAL, range(21), PASCAL_SPLIT),
    "voc21": Layout(*PASCAL, range(21), PASCAL_SPLIT),
    "context59": Layout(*PASCAL_CONTEXT, range(60), CONTEXT_SPLIT),
    "context60": Layout(*PASCAL_CONTEXT, range(60), CONTEXT_SPLIT),
    "coco_object": Layout(
        "coco_object/images/val2017/{}.jpg", "coco_object/annotations/val2017/{}_instanceTrainIds.png", range(81)
    ),
    "coco_stuff164k": Layout(
        "coco_stuff164k/images/val2017/{}.jpg", "coco_stuff164k/annotations/val2017/{}_labelTrainIds.png", range(171)
    ),
    "city_scapes": Layout(
        "cityscapes/leftImg8bit/val/bonn/{}_leftImg8bit.png",
        "cityscapes/gtFine/val/bonn/{}_gtFine_labelTrainIds.png",
        range(19),
    ),
    "ade20k": Layout(f"{ADE}/images/validation/{{}}.jpg", f"{ADE}/annotations/validation/{{}}.png", range(151)),
}


def make_benchmark(root: Path, name: str) -> None:
    """Write the three images of benchmark `name` below the data root: coloured blocks, labels in blocks of 8."""
    layout = LAYOUTS[name]
    random = np.random.default_rng(0)
    for (image, label), (height, width) in zip(layout.files(root), SHAPES.values()):
        colours = random.integers(0, 256, (height // 12 + 1, width // 12 + 1, 3), np.uint8)
        labels = random.choice([*layout.labels, 255], (height // 8 + 1, width // 8 + 1)).astype(np.uint8)
        labels[0, :2] = 0, 255
        for path, array, block in ((image, colours, 12), (label, labels, 8)):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.repeat(block, 0).repeat(block, 1)[:height, :width]).save(path)
    if layout.split:
        (root / layout.split).parent.mkdir(parents=True, exist_ok=True)
        (root / layout.split).write_text("".join(f"{image}\n" for image in SHAPES))


def make_benchmarks(root: Path) -> Path:
    """All eight below `root`, which is returned."""
    for name in LAYOUTS:
        make_benchmark(root, name)
    return root


def run(*command, cwd: Path, data: Path) -> subprocess.CompletedProcess:
    """Run a program as its user does, on the CPU."""
    variables = {
        "CLEARCLIP_DATA": str(data),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHON": sys.executable,  # for dist_test.sh
    }
    command = [str(part) for part in command]
    return subprocess.run(command, cwd=cwd, env=os.environ | variables, capture_output=True, text=True, timeout=280)


def single_error(stderr: str) -> str:
    """The one line of `stderr`, progress aside, which must be an error message."""
    lines = [line for line in stderr.splitlines() if not line.startswith("test: ")]
    (line,) = (line for line in lines if "images are counted already; --fresh" not in line)
    assert line.startswith("error: ")
    return line
