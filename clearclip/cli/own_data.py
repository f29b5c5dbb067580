"""Pictures of one's own: `clearclip eval --images DIR --masks DIR --classes FILE`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearclip.errors import UserError
from clearclip.paths import safe_component

if TYPE_CHECKING:
    from clearclip.evaluation.run import Run

LAYOUTS = ("auto", "folders", "voc", "cityscapes", "coco")  # of `clearclip.evaluation.folders`, slow to import


def add_own_data(parser: argparse.ArgumentParser) -> None:
    """The options that name a data set of one's own, in place of a config."""
    group = parser.add_argument_group("a data set of your own")
    group.add_argument("--images", metavar="DIR", help="its pictures, or its root in the layouts voc and cityscapes")
    group.add_argument("--masks", metavar="DIR", help="label maps or colour masks, or COCO's JSON")
    group.add_argument("--classes", metavar="FILE", help="class file, a line for each label")
    group.add_argument("--palette", metavar="FILE", help="palette of colour masks: a line `R G B name` for each class")
    group.add_argument(
        "--layout", choices=LAYOUTS, default="auto", help="how the files lie (default: by what is there)"
    )
    group.add_argument("--ignore", metavar="N[,N]", default="255", help="labels of no class (default: 255), or none")
    group.add_argument("--first-label", type=int, metavar="N", default=0, help="label of the first class (default: 0)")
    group.add_argument("--split", default="val", help="part of a voc or cityscapes layout (default: val)")
    group.add_argument("--mask-suffix", metavar="TEXT", help="what follows a picture's name in its mask's")


def own_run(arguments: argparse.Namespace, model: dict[str, Any], overrides: dict[str, Any]) -> "Run":
    """The run that the options of `add_own_data` ask for, by the ClearCLIP protocol; says what the folders hold.

    Raises UserError for what is missing or does not fit the class file.
    """
    from clearclip.evaluation.folders import describe, folder_dataset
    from clearclip.evaluation.run import load_config

    if not arguments.images or not arguments.classes:
        raise UserError("--images needs --classes, and --classes needs --images: give a folder and a class file")
    dataset = folder_dataset(
        arguments.images,
        arguments.masks,
        arguments.classes,
        palette=arguments.palette,
        layout=arguments.layout,
        ignore=ignored(arguments.ignore),
        first_label=arguments.first_label,
        split=arguments.split,
        mask_suffix=arguments.mask_suffix,
    )
    print("\n".join(describe(dataset)), file=sys.stderr)
    own: dict[str, Any] = {
        "model.vocabulary": dataset["class_file"],
        "test_dataloader.dataset": dataset,
        "test_evaluator.ignore_index": dataset["ignore_index"],
        "benchmark.name": safe_component(Path(dataset["data_root"]).name or "pictures"),
    }
    return load_config("base.py", model, overrides, arguments.limit, own)


def ignored(text: str) -> list[int] | None:
    """The labels of `--ignore`: "255", "0,255" or "none"."""
    if text.strip().lower() == "none":
        return None
    numbers = [number.strip() for number in text.split(",")]
    if not all(number.isdecimal() for number in numbers):
        raise UserError(f"--ignore {text!r} must be labels separated by commas, such as 0,255, or none")
    return [int(number) for number in numbers]
