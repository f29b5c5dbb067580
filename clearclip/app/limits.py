"""What the page takes, each limit said in one sentence, and what it must not show."""

import math
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clearclip.errors import UserError
from clearclip.images import image_size, read_image
from clearclip.paths import cache_dir
from clearclip.visualize.canvas import shown_shape, shrink
from clearclip.vocabulary import Vocabulary

# A folder's path, up to the name of what lies in it: after a "/" that no word, address or other path goes on into.
FOLDER = re.compile(r"(?<![\w.:/\\~])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\"`,;()]+[/\\])*(?=[^\s/\\])")


@dataclass(frozen=True)
class Limits:
    """How much one visitor may ask of the machine.

    Attributes:
        megabytes: of a file.
        side: pixels of a picture's longer side.
        worked: pixels to which the longer side is shrunk; labels have this size.
        names: of all classes, synonyms counted.
        letters: of one name.
    """

    megabytes: int = 20
    side: int = 8000
    worked: int = 1600
    names: int = 40
    letters: int = 80

    def __str__(self) -> str:
        return (
            f"Pictures of up to {self.megabytes} MB and {self.side:,} pixels a side, shrunk to {self.worked:,}; "
            f"up to {self.names} names."
        )


def check_picture(path: str | Path, limits: Limits) -> None:
    """Raise UserError for a picture that is too large or cannot be read, before it is decoded."""
    megabytes = os.path.getsize(path) / (1 << 20)
    if megabytes > limits.megabytes:
        raise UserError(f"the picture has {math.ceil(megabytes)} MB, more than {limits.megabytes}; give a smaller copy")
    height, width = image_size(path)
    if max(height, width) > limits.side:
        raise UserError(
            f"the picture has {width:,} × {height:,} pixels, more than {limits.side:,} a side; give a smaller copy"
        )


def read_picture(path: str | Path | None, limits: Limits) -> np.ndarray:
    """A picture as RGB, uint8 [H, W, 3], its longer side at most `limits.worked`.

    Raises UserError as `check_picture` does, and where there is none.
    """
    if path is None:
        raise UserError("there is no picture yet; drop one, or take an example")
    check_picture(path, limits)
    pixels = read_image(path, max_pixels=None)
    return shrink(pixels, shown_shape(pixels.shape, limits.worked))


def read_names(names: Sequence[str], limits: Limits) -> Vocabulary:
    """One class a name, synonyms separated by commas; empty ones are left out. Raises UserError for what cannot be."""
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise UserError("there is no name yet; type what to look for, and Enter after each name")
    vocabulary = Vocabulary.of(names)
    if len(vocabulary.queries) > limits.names:
        raise UserError(f"there are {len(vocabulary.queries)} names, more than {limits.names}; take some away")
    long = max(vocabulary.queries, key=len)
    if len(long) > limits.letters:
        raise UserError(f"the name {long[:20]!r}… has {len(long)} letters, more than {limits.letters}; shorten it")
    return vocabulary


def without_folders(text: str) -> str:
    """A sentence for visitors: of files it has the names alone, not where they lie on the machine."""
    for folder in (cache_dir(), tempfile.gettempdir(), Path.cwd(), Path.home()):  # their names may hold spaces
        text = text.replace(f"{folder}{os.sep}", "/")
    return FOLDER.sub("", text)
