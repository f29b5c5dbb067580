"""Options that several commands have, spelt and read alike."""

import argparse


def add_modules(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--import", dest="modules", action="append", default=[], metavar="MODULE",
        help="a Python module with methods, refinements or backbones of your own; may be given again",
    )  # fmt: skip


def add_device(parser: argparse.ArgumentParser | argparse._ArgumentGroup, default: str | None = None) -> None:
    parser.add_argument("--device", default=default, help="auto, cpu, cuda, mps")
    parser.add_argument("--precision", default=default, help="auto, fp32, fp16, bf16")


def add_calibration(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--calibration", metavar="FILE", help="class offsets and a threshold that clearclip calibrate fitted"
    )


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    """The options of every evaluation."""
    parser.add_argument("--text-embeddings", metavar="FILE", help="saved text embeddings; {dataset} is filled in")
    parser.add_argument("--limit", type=positive, metavar="N", help="the first N images alone, marked as a part")
    parser.add_argument(
        "--other", action="store_true", default=None, help="words for everything else take part in class 0, background"
    )
    add_device(parser)
    parser.add_argument("--results", metavar="FILE", default="results.xlsx", help="spreadsheet to append to")
    parser.add_argument(
        "--cfg-options", nargs="+", action="extend", metavar="KEY=VALUE", default=[],
        help="override any config key, such as model.short_side=336",
    )  # fmt: skip
    add_modules(parser)


def positive(text: str) -> int:
    """A whole number above 0, as the type of an option."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not {text!r}")
    return int(text)


def model_settings(arguments: argparse.Namespace) -> dict:
    """The settings of a config's model that options of `add_evaluation` give; None where they do not."""
    keys = ("text_embeddings", "device", "precision", "other")
    return {key: getattr(arguments, key) for key in keys}
