"""Videos and cameras in `clearclip segment`."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clearclip.cli.outputs import in_words, kinds
from clearclip.cli.status import Status
from clearclip.errors import UserError
from clearclip.paths import check_writable

if TYPE_CHECKING:
    from clearclip.segmenter import Segmenter
    from clearclip.vocabulary import Vocabulary

KINDS = {"overlay", "labels", "json"}  # of `Segmentation.save`, that a video may have


def target(film: Path | int, folder: Path) -> Path:
    """The MP4 file of a video or camera."""
    return folder / (f"camera{film}_overlay.mp4" if isinstance(film, int) else f"{film.stem}_overlay.mp4")


def check_films(arguments: argparse.Namespace, films: Sequence[Path | int]) -> None:
    """Raise UserError for options that no video can have, and for a file that cannot be written."""
    from clearclip.video import Smoother

    if arguments.compare:
        raise UserError("--compare shows methods side by side on pictures, not on videos; run each method by itself")
    if wrong := [kind for kind in kinds(arguments.save) if kind not in KINDS]:
        raise UserError(f"--save {wrong[0]} is for pictures; a video may have {', '.join(sorted(KINDS))}")
    Smoother(arguments.smooth or 0.0)
    seen = set()
    for film in films:
        path = target(film, Path(arguments.output))
        check_writable(path)
        if isinstance(film, Path) and path.resolve() == film.resolve():
            raise UserError(f"{path} would be written over one of the videos; give another --output")
        if path in seen:
            raise UserError(f"{path} would be written for two videos; rename one of them")
        seen.add(path)


def segment_films(
    arguments: argparse.Namespace,
    films: Sequence[Path | int],
    vocabulary: "Vocabulary",
    segmenter: "Segmenter",
    status: Status,
) -> None:
    """Segment videos one after the other into MP4 files; Ctrl-C ends one and keeps its frames so far."""
    from clearclip.video import Film, Frames, segment_frames

    wanted = kinds(arguments.save)
    each = [kind for kind in wanted if kind != "overlay"]
    for film in films:
        path = target(film, Path(arguments.output))
        done, begin = 0, time.perf_counter()
        areas: dict[str, float] = {}
        status.say(f"opening {film}")
        with Frames(film, arguments.frames) as frames, Film(path, frames.fps) as written:
            try:
                for result in segment_frames(segmenter, frames, vocabulary, arguments.smooth or 0.0):
                    if "overlay" in wanted:
                        written.add(result)
                    if each:
                        result.save(path.with_name(f"{path.stem.removesuffix('_overlay')}_frames"), each, f"{done:06}")
                    areas = {name: areas.get(name, 0) + share for name, share in result.areas.items()} | {
                        name: share for name, share in areas.items() if name not in result.areas
                    }
                    done += 1
                    pace = done / (time.perf_counter() - begin)
                    of = f"/{frames.count}" if frames.count else ""
                    status.say(f"{frames.name}: {done}{of} frames, {pace:.1f} frames/s")
            except KeyboardInterrupt:
                status.note(f"interrupted after {done} frames, which are kept")
        status.clear()
        seconds = time.perf_counter() - begin
        means = {name: share / done for name, share in sorted(areas.items(), key=lambda pair: -pair[1])} if done else {}
        print(f"{frames.name}: {done} frames, {in_words(means)} ({done / seconds:.1f} frames/s)")
        if "overlay" in wanted:
            print(f"  {path} (without sound)")
