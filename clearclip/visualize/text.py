"""Fonts that have the letters of a name, and names cut to a length that pictures have room for."""

import contextlib
import functools
from typing import Any

from PIL import ImageFont

FONTS = (  # of common systems, by how many scripts they have
    *("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "msyh.ttc"),
    *("FreeSans.ttf", "unifont.otf"),
)
NAME_LENGTH = 32  # characters of a class name that a picture shows


def find_font(size: int, text: str) -> Any:
    """A font that has all letters of a text: Pillow's own, one of the system's, or else Pillow's."""
    own = _font("", size)
    if draws(own, text):
        return own
    for name in FONTS:
        with contextlib.suppress(OSError):
            font = _font(name, size)
            if draws(font, text):
                return font
    return own


def writable(name: str, index: int, size: int) -> tuple[str, Any]:
    """A class's name as it can be written, and the font: "class 3" where no font has its letters."""
    short = shortened(name)
    font = find_font(size, short)
    return (short if draws(font, short) else f"class {index}"), font


def draws(font: Any, text: str) -> bool:
    """Whether a font has all letters of a text: it draws a box for those that it lacks, as for U+FFFF."""
    box = bytes(font.getmask("\uffff"))
    return not any(not letter.isspace() and bytes(font.getmask(letter)) == box for letter in set(text))


def shortened(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1].rstrip() + "…"


@functools.lru_cache(maxsize=64)
def _font(name: str, size: int) -> Any:
    return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
