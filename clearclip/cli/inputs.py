"""What `clearclip segment` is given: pictures, kept features, videos, cameras and names, checked before all else."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from clearclip.errors import UserError

if TYPE_CHECKING:
    from clearclip.features import Kept
    from clearclip.images import Skipped
    from clearclip.vocabulary import Vocabulary


@dataclass(frozen=True)
class Inputs:
    """What there is to segment.

    Attributes:
        pictures: their files, each once.
        named: those of them that were named one by one; a fault in another costs nothing but that picture.
        kept: features in place of pictures.
        films: video files, and cameras by their number.
        skipped: files of folders that are neither.
    """

    pictures: list[Path] = field(default_factory=list)
    named: frozenset[Path] = frozenset()
    films: list[Path | int] = field(default_factory=list)
    kept: "list[Kept]" = field(default_factory=list)
    skipped: "list[Skipped]" = field(default_factory=list)


def find_inputs(given: Sequence[str], recursive: bool = False) -> Inputs:
    """Sort what was given into pictures, of files, folders and globs, kept features, videos and cameras.

    A number that is no file is a camera; of a folder without pictures its kept features count. Raises UserError for
    what does not exist and a folder without either.
    """
    from clearclip.features import KeptFolder, is_kept, kept_in
    from clearclip.images import VIDEO_SUFFIXES, Skipped, find_pictures

    films: list[Path | int] = []
    kept: list[Kept] = []
    skipped: list[Skipped] = []
    rest = []
    for text in given:
        if text.isdecimal() and not os.path.exists(text):
            films.append(int(text))
        elif text.lower().endswith(VIDEO_SUFFIXES) and os.path.isfile(text):
            films.append(Path(text))
        elif is_kept(text) and (paths := _files(text)):
            kept += [one for path in paths for one in kept_in(path)]
        elif os.path.isdir(text) and (folder := KeptFolder(text)) and not _holds_pictures(text, recursive):
            kept += folder
            skipped += [Skipped(path, "damaged features") for path in folder.damaged]
        else:
            rest.append(text)
    if not rest:
        return Inputs(films=films, kept=kept, skipped=skipped)
    pictures, others = find_pictures(rest, recursive)
    named = frozenset(Path(text) for text in rest) & frozenset(pictures)
    return Inputs(pictures, named, films, kept, [*skipped, *others])


def _files(text: str) -> list[str]:
    """The files that a path or a glob names."""
    return [text] if os.path.isfile(text) else sorted(glob.glob(text, recursive=True))


def _holds_pictures(folder: str, recursive: bool) -> bool:
    from clearclip.images import find_pictures

    try:
        return bool(find_pictures(folder, recursive)[0])
    except UserError:
        return False


def left_out(skipped: "Sequence[Skipped]") -> str:
    """How many files of folders are left out, and why; empty where none is."""
    reasons = Counter(one.reason for one in skipped)
    if not reasons:
        return ""
    parts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return f"left out: {_count(len(skipped), 'file')} ({parts}), such as {skipped[0].path}"


def check_names(names: Sequence[str]) -> str:
    """What a list of names might not mean, in one sentence; empty as a rule.

    Raises UserError for a name that is a file.
    """
    for name in names:
        if Path(name).suffix and _is_file(name):
            raise UserError(f"{name} is a file; put pictures before --names")
    if len(names) == 1 and names[0].count(","):
        parts = [part.strip() for part in names[0].split(",") if part.strip()]
        shown = " ".join(f'"{part}"' if " " in part else part for part in parts)
        return f'"{names[0]}" is {len(parts)} synonyms of one class; separate classes by spaces: --names {shown}'
    return ""


def _is_file(name: str) -> bool:
    try:
        return os.path.isfile(name)
    except ValueError:  # a NUL
        return False


def lonely(vocabulary: "Vocabulary", other: bool) -> str:
    """A warning where one class would take every pixel; else empty."""
    if len(vocabulary) > 1 or other:
        return ""
    return "one name takes every pixel: name what else is in the picture, too, or add --other"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
