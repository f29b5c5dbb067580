"""Keep patch features of pictures: `clearclip features photos -o features`, and ask for any names later."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearclip.cli.inputs import find_inputs, left_out
from clearclip.cli.options import add_device, add_modules, positive
from clearclip.cli.segment import MAX_PIXELS, USUAL
from clearclip.cli.status import Status
from clearclip.config import find_config, parse_options
from clearclip.errors import UserError, out_of_memory, program
from clearclip.paths import check_writable

if TYPE_CHECKING:
    from clearclip.features import KeptFeatures, KeptFolder, Origin
    from clearclip.segmenter import Segmenter
    from clearclip.view import View


def parse_arguments(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog,
        description="Keep patch features of pictures in files that segment, eval and the API take in their place.",
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="pictures, folders or globs")
    parser.add_argument("--recursive", action="store_true", help="read folders with all folders in them")
    parser.add_argument("-o", "--output", default="features", metavar="DIR", help="where files go (default: features)")
    parser.add_argument(
        "--per-file", type=positive, default=1, metavar="N",
        help="pictures in a file, so many of whose features are then in memory (default: 1)",
    )  # fmt: skip
    parser.add_argument("--fresh", action="store_true", help="make again what is kept already")
    model = parser.add_argument_group("how")
    model.add_argument("--method", help=f"see segment --list (default: {USUAL['method']}, or the config's)")
    model.add_argument("--backbone", help=f"OpenCLIP architecture, or arch:tag (default: {USUAL['backbone']})")
    model.add_argument("--pretrained", help=f"weights: a tag, a file or openai-int8 (default: {USUAL['pretrained']})")
    model.add_argument("--short-side", type=int, help="pixels to which pictures are resized (default: 448)")
    model.add_argument("--crop", type=int, help="windows of so many pixels (default: 448); 0: whole pictures")
    model.add_argument("--stride", type=int, help="pixels from one window to the next (default: 224)")
    add_device(model)
    model.add_argument(
        "--max-pixels", type=positive, default=MAX_PIXELS, metavar="N",
        help="pictures of more pixels are refused before they fill the memory (default: 200 million)",
    )  # fmt: skip
    bench = parser.add_argument_group("a benchmark")
    bench.add_argument("--config", metavar="CONFIG", help="its images, and its settings: voc20 or a config file")
    bench.add_argument("--protocol", default="clearclip", help="whose voc20 it is: clearclip, sclip, naclip, …")
    bench.add_argument("--limit", type=positive, metavar="N", help="its first N images alone")
    bench.add_argument("--cfg-options", nargs="+", action="extend", metavar="KEY=VALUE", default=[], help="see eval")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    add_modules(parser)
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Picture:
    """A picture to be kept.

    Attributes:
        path: its file.
        stored: whether its pixels count as they are stored, EXIF's orientation ignored.
        named: whether it was named one by one, so that it must not be left out.
    """

    path: Path
    stored: bool = False
    named: bool = False


@dataclass
class Keeper:
    """Keeps features of pictures in a folder, as many pictures at a time as fill a batch of windows."""

    segmenter: "Segmenter"
    folder: "KeptFolder"
    status: Status
    max_pixels: int = MAX_PIXELS
    fresh: bool = False
    per_file: int = 1
    made: int = 0
    bytes: int = 0
    there: int = 0
    failed: list[Picture] = field(default_factory=list)
    _batch: list[tuple[Picture, "View", "Origin"]] = field(default_factory=list)
    _unwritten: "list[KeptFeatures]" = field(default_factory=list)

    def keep(self, pictures: Sequence[Picture]) -> None:
        """Keep all of them. One that cannot be read costs no other; what is made when something ends it is written."""
        try:
            self._keep(pictures)
        finally:
            self._write()

    def _keep(self, pictures: Sequence[Picture]) -> None:
        begin = time.perf_counter()
        for picture in pictures:
            done = self.made + len(self._unwritten) + len(self.failed)
            pace = f", {(time.perf_counter() - begin) / done:.2f} s each" if done else ""
            self.status.say(f"{len(pictures)} pictures: {done + self.there} done{pace}")
            try:
                self._take(picture)
            except UserError as error:
                self._fail([picture], str(error))
            if sum(len(view.plan) for _, view, _ in self._batch) >= self.segmenter.window_batch:
                self._flush()
        self._flush()

    def _take(self, picture: Picture) -> None:
        """Read a picture unless its features are there."""
        import torch

        from clearclip.features import Origin, file_hash
        from clearclip.images import read_image, read_stored

        sha256 = file_hash(picture.path)
        if self._is_there(picture, sha256):
            self.there += 1
            return
        pixels = (read_stored if picture.stored else read_image)(picture.path, self.max_pixels)
        view = self.segmenter.view(torch.from_numpy(pixels).permute(2, 0, 1), name=str(picture.path))
        self._batch.append((picture, view, Origin.of(picture.path, pixels, picture.stored, sha256)))

    def _is_there(self, picture: Picture, sha256: str) -> bool:
        """Whether features of it are kept that this segmenter would make again."""
        from clearclip.keeping import about

        kept = None if self.fresh else self.folder.find(picture.path, sha256)
        return (
            kept is not None
            and kept.note.settings == self.segmenter.feature_settings
            and kept.note.about["precision"] == about(self.segmenter)["precision"]
            and kept.note.origin.stored == picture.stored
        )

    def _flush(self) -> None:
        """Make and write the features of what was read."""
        from clearclip.keeping import keep_views

        batch, self._batch = self._batch, []
        if not batch:
            return
        pictures, views, origins = zip(*batch)
        try:
            made = keep_views(self.segmenter, views, origins)
        except UserError as error:
            return self._fail(pictures, str(error))
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            return self._fail(pictures, f"not enough memory for {pictures[0].path}: give a smaller --short-side")
        for kept in made:
            self._unwritten.append(kept)
            if len(self._unwritten) == self.per_file:
                self._write()

    def _write(self) -> None:
        """Write what is made into a file."""
        several, self._unwritten = self._unwritten, []
        if not several:
            return
        try:
            self.bytes += self.folder.add(*several).stat().st_size
        except OSError as error:
            raise UserError(
                f"{self.folder.folder} cannot be written ({error.strerror}): make room and run again, what is kept is "
                "not made again"
            ) from None
        self.made += len(several)

    def _fail(self, pictures: Sequence[Picture], reason: str) -> None:
        self.failed += pictures
        self.status.note(f"error: {reason}" if any(one.named for one in pictures) else f"left out: {reason}")


def pictures_of(arguments: argparse.Namespace, status: Status) -> list[Picture]:
    """What is named on the command line."""
    inputs = find_inputs(arguments.images, arguments.recursive)
    if inputs.films or inputs.kept:
        odd = inputs.films[0] if inputs.films else inputs.kept[0].path
        raise UserError(f"{odd} is no picture: features are kept of pictures")
    if note := left_out(inputs.skipped):
        status.note(note)
    return [Picture(path, named=path in inputs.named) for path in inputs.pictures]


def open_pictures(arguments: argparse.Namespace, status: Status) -> tuple["Segmenter", list[Picture]]:
    """The segmenter that options describe, and the pictures that are named."""
    from clearclip.segmenter import Segmenter

    pictures = pictures_of(arguments, status)
    given = {key: getattr(arguments, key) for key in (*USUAL, "crop", "stride", "device", "precision")}
    settings: dict[str, Any] = USUAL | {key: value for key, value in given.items() if value is not None}
    status.say(f"loading {settings['backbone']} ({settings['pretrained']})")
    return Segmenter(**settings), pictures


def open_benchmark(arguments: argparse.Namespace, status: Status) -> tuple["Segmenter", list[Picture]]:
    """The segmenter that a config describes, and the images of its data set."""
    from clearclip.backbones import load_backbone
    from clearclip.evaluation.datasets import check_dataset
    from clearclip.evaluation.evaluate import build_segmenter
    from clearclip.evaluation.evaluate import open_benchmark as open_run
    from clearclip.evaluation.loading import counts_as_stored
    from clearclip.evaluation.run import backbone_settings, load_config

    model = {key: getattr(arguments, key) for key in (*USUAL, "crop", "stride", "device", "precision")}
    path = find_config(arguments.config, arguments.protocol)
    run = load_config(path, model, parse_options(arguments.cfg_options), arguments.limit)
    check_dataset(run)
    dataset = open_run(run, {}).dataset
    images = [dataset.get_data_info(index) for index in range(len(dataset))]
    files = {Path(one["img_path"]): one.get("seg_map_path") for one in images}
    status.say(f"loading {run.config.model.backbone} ({run.config.model.pretrained})")
    segmenter = build_segmenter(run, load_backbone(**backbone_settings(run)), {})
    return segmenter, [Picture(path, counts_as_stored(path, labels)) for path, labels in files.items()]


def keep(arguments: argparse.Namespace, status: Status) -> None:
    status.say("starting PyTorch")

    from clearclip.features import KeptFolder
    from clearclip.keeping import check_kept

    check_writable(Path(arguments.output) / "picture.safetensors")
    segmenter, pictures = (open_benchmark if arguments.config else open_pictures)(arguments, status)
    check_kept(segmenter)
    folder = KeptFolder(arguments.output)
    for reason in folder.damaged.values():
        status.note(f"made anew: {reason}")
    keeper = Keeper(segmenter, folder, status, arguments.max_pixels, arguments.fresh, arguments.per_file)
    keeper.keep(pictures)
    status.clear()
    there = f", {keeper.there} were there already" if keeper.there else ""
    print(f"{folder.folder}: features of {keeper.made} pictures ({keeper.bytes / 1e6:.1f} MB){there}")
    if keeper.failed:
        status.note(f"{len(keeper.failed)} of {len(pictures)} pictures could not be read")
        if len(keeper.failed) == len(pictures) or any(one.named for one in keeper.failed):
            raise SystemExit(2)


@program
def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    arguments = parse_arguments(argv, prog)
    if bool(arguments.images) == bool(arguments.config):
        raise UserError(
            "say of what to keep features: pictures, such as photos/, or a benchmark, such as --config voc20"
        )
    if arguments.config:
        find_config(arguments.config, arguments.protocol)  # what needs no PyTorch is found at once
    elif arguments.limit or arguments.cfg_options:
        raise UserError("--limit and --cfg-options are of a benchmark: give --config")

    from clearclip.registry import import_modules

    import_modules(arguments.modules)
    with Status(arguments.quiet) as status:
        keep(arguments, status)
