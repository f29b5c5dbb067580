"""Legends: colour, name and share of each class that occurs."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from clearclip.visualize.canvas import INK, PAPER
from clearclip.visualize.colours import blended, palette
from clearclip.visualize.text import find_font, writable

GREY = (200, 200, 200)  # of what has no class
FAINT = (110, 110, 110)


def legend_panel(
    counts: np.ndarray,
    names: Sequence[str],
    size: int = 14,
    colours: np.ndarray | None = None,
    max_height: int | None = None,
    max_width: int | None = None,
    notes: Sequence[str] | None = None,
    nothing: str = "no class",
) -> Image.Image:
    """Colour, name and share of each class that occurs, the largest first, and last of ignored pixels.

    counts [C + 1] are pixels of classes and of what is ignored, as `areas` has them; text has `size` pixels; `notes`
    [C] stand in place of shares, `nothing` is what ignored pixels are called. Entries go into one column,
    or into as many as `max_width` allows, or into two or three where they would pass `max_height`.
    """
    colours = palette(len(names)) if colours is None else colours
    entries = _entries(np.asarray(counts), names, size, colours, notes)
    if counts[-1]:
        share = percentage(100 * counts[-1] / np.sum(counts))
        entries.append((GREY, *writable(nothing, len(names), size), share))
    line, gap = round(1.5 * size), size // 2
    plain = find_font(size, "0123456789.%<")
    note_width = max((plain.getlength(note) for *_, note in entries), default=0)
    name_width = max((font.getlength(name) for _, name, font, _ in entries), default=0)
    column = math.ceil(size + gap + name_width + gap + note_width + 2 * gap)
    count = max(1, len(entries))
    rows = count
    if max_height is not None:
        rows = min(count, max(8, (max_height - gap) // line, math.ceil(count / 3)))
    elif max_width is not None:
        rows = math.ceil(count / max(1, (max_width - gap) // column))

    panel = Image.new("RGB", (gap + math.ceil(count / rows) * column, gap + rows * line), PAPER)
    draw = ImageDraw.Draw(panel)
    for place, (colour, name, font, note) in enumerate(entries):
        x, y = gap + place // rows * column, gap + place % rows * line
        draw.rounded_rectangle((x, y, x + size - 1, y + size - 1), radius=size // 5, fill=colour)
        draw.text((x + size + gap, y + size / 2), name, INK, font, anchor="lm")
        draw.text((x + column - 2 * gap, y + size / 2), note, FAINT, plain, anchor="rm")
    return panel


def _entries(
    counts: np.ndarray, names: Sequence[str], size: int, colours: np.ndarray, notes: Sequence[str] | None
) -> list[tuple[Any, str, Any, str]]:
    """Colour, name, its font and a note for each line."""
    entries = []
    for i in np.argsort(-counts[:-1], kind="stable"):
        if counts[i]:
            note = percentage(100 * counts[i] / counts.sum()) if notes is None else notes[i]
            entries.append((tuple(blended(colours[i])), *writable(names[i], int(i), size), note))
    return entries


def percentage(share: float) -> str:
    return f"{share:.1f}%" if share >= 0.05 else "<0.1%"
