"""Plots as SVG: small, sharp at any size, in the page's own colours (its classes are in style.css).

All are 400 units wide, so that their text is legible on a phone.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from clearclip.evaluation.report.markup import Markup, escaped, tag
from clearclip.evaluation.statistics import Interval, format_difference, noisy

WIDTH = 400
SMALL, LETTER = 12, 6.6  # size of small text, and the mean width of its letters
NAME = 52  # letters that fit into a line
Scale: TypeAlias = Callable[[float], float]  # from what is measured to a place


@dataclass(frozen=True)
class Dot:
    """A line of a plot of scores: what it is, how much, what others published; `kind` is a class of style.css."""

    name: str
    value: Interval
    published: float | None = None
    note: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Point:
    """A point of a plot of two measures."""

    name: str
    x: float
    y: float
    kind: str = ""


def dots(lines: Sequence[Dot], title: str) -> Markup:
    """Scores with their intervals, one below the other, published ones as diamonds."""
    values = [
        number for one in lines for number in _known(one.value.value, one.value.low, one.value.high, one.published)
    ]
    low, high, step = axis(values)
    top, height = 4, 34
    bottom = top + height * len(lines)
    place = _scale(low, high, 8, WIDTH - 12)
    parts = _grid(low, high, step, place, top, bottom)
    for index, one in enumerate(lines):
        y = top + height * index
        parts += [
            _text(_cut(one.name, NAME - len(one.note)), 4, y + 12, one.kind),
            _text(one.note, WIDTH - 4, y + 12, f"end {one.kind}"),
        ]
        if not math.isnan(one.value.half_width):
            ends = dict(x1=_round(place(one.value.low)), x2=_round(place(one.value.high)))
            parts.append(tag("line", **ends, y1=y + 23, y2=y + 23, class_="whisker"))
        if one.published is not None:
            x = place(one.published)
            diamond = f"M{x:.1f} {y + 17}l6 6l-6 6l-6 -6z"
            parts.append(Markup(f'<path d="{diamond}" class="published"><title>{escaped("published")}</title></path>'))
        parts.append(tag("circle", cx=_round(place(one.value.value)), cy=y + 23, r=5, class_=f"dot {one.kind}".strip()))
    return _svg(parts, bottom + 20, title)


def scatter(points: Sequence[Point], title: str, x_name: str, y_name: str) -> Markup:
    """Points by two measures, the first on a logarithmic scale, each with its name."""
    height, left, bottom = 300, 34, 262
    xs, ys = [point.x for point in points], [point.y for point in points]
    low, high, step = axis(ys)
    place_y = _scale(low, high, bottom, 26)
    first, last = math.log10(min(xs) / 1.3), math.log10(max(xs) * 1.3)
    across = _scale(first, last, left, WIDTH - 14)
    parts: list[Markup] = []
    for tick in _steps(low, high, step):
        y = _round(place_y(tick))
        parts += [
            tag("line", x1=left, x2=WIDTH - 8, y1=y, y2=y, class_="grid"),
            _text(f"{tick:g}", left - 5, y + 4, "end axis"),
        ]
    for tick in _decades(first, last):
        x = _round(across(math.log10(tick)))
        parts += [
            tag("line", x1=x, x2=x, y1=26, y2=bottom, class_="grid"),
            _text(f"{tick:g}", x, bottom + 15, "middle axis"),
        ]
    parts += [_text(x_name, WIDTH / 2, height - 4, "middle axis"), _text(y_name, 2, 9, "axis")]
    taken: list[tuple[float, float, float]] = []  # left, right and height of names
    for point in sorted(points, key=lambda one: -one.y):
        x, y = across(math.log10(point.x)), place_y(point.y)
        name = _cut(point.name, 30)
        length = LETTER * len(name)
        start = x + 8 if x + 8 + length < WIDTH else x - 8 - length
        line = y + 4
        while any(start < right and a < start + length and abs(line - at) < SMALL + 1 for a, right, at in taken):
            line += 2
        taken.append((start, start + length, line))
        parts += [
            tag("circle", cx=_round(x), cy=_round(y), r=5, class_=f"dot {point.kind}".strip()),
            _text(name, _round(start), _round(line), point.kind),
        ]
    return _svg(parts, max([height, *(line + 4 for *_, line in taken)]), title)


def gains(lines: Sequence[tuple[str, Interval]], title: str) -> Markup:
    """Differences with their intervals as bars left and right of a line at 0."""
    ends = [number for _, one in lines for number in _known(one.value, one.low, one.high)]
    low, high, step = axis([0, *ends])
    top, height, left = 4, 20, 118
    bottom = top + height * len(lines)
    place = _scale(low, high, left, WIDTH - 48)
    parts = _grid(low, high, step, place, top, bottom)
    zero = place(0)
    for index, (name, one) in enumerate(lines):
        y = top + height * index
        x = place(one.value)
        kind = "even" if noisy(one) else "more" if one.value > 0 else "less"
        box = dict(x=_round(min(x, zero)), width=_round(max(abs(x - zero), 0.5)))
        parts += [
            _text(_cut(name, 17), left - 6, y + 14, "end"),
            tag("rect", **box, y=y + 4, height=height - 8, class_=kind),
            _text(format_difference(one), WIDTH - 2, y + 14, "end"),
        ]
        if not math.isnan(one.half_width):
            span = dict(x1=_round(place(one.low)), x2=_round(place(one.high)))
            parts.append(tag("line", **span, y1=y + 10, y2=y + 10, class_="whisker thin"))
    parts.append(tag("line", x1=_round(zero), x2=_round(zero), y1=top, y2=bottom, class_="zero"))
    return _svg(parts, bottom + 20, title)


def axis(values: Sequence[float]) -> tuple[float, float, float]:
    """A range that holds all values, and the distance of its ticks: 1, 2 or 5 times a power of ten.

    >>> axis([36.3, 82.7])
    (30, 90, 10)
    """
    low, high = min(values), max(values)
    span = max(high - low, 1.0)
    unit = 10 ** math.floor(math.log10(span / 4))
    step = next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= 6)
    return math.floor(low / step) * step, math.ceil(high / step + 1e-9) * step, step


def _svg(parts: Sequence[Markup], height: float, title: str) -> Markup:
    return tag(
        "svg", tag("title", title), *parts, viewBox=f"0 0 {WIDTH} {height:.0f}", role="img", class_="plot",
        preserveAspectRatio="xMidYMid meet",
    )  # fmt: skip


def _grid(low: float, high: float, step: float, place: Scale, top: float, bottom: float) -> list[Markup]:
    parts = []
    for tick in _steps(low, high, step):
        x = _round(place(tick))
        parts += [
            tag("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid"),
            _text(f"{tick:g}", x, bottom + 14, "middle axis"),
        ]
    return parts


def _text(text: str, x: float, y: float, kind: str = "") -> Markup:
    text = text.replace("-", "−") if re.match(r"-\d", text) else text  # as wide as a plus
    return tag("text", text, x=_round(x), y=_round(y), class_=kind.strip() or None) if text else Markup()


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    """A linear map of low..high to start..end."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _steps(low: float, high: float, step: float) -> list[float]:
    return [round(low + index * step, 10) for index in range(round((high - low) / step) + 1)]


def _decades(first: float, last: float) -> list[float]:
    """Whole multiples of powers of ten between powers of ten: as many as there is room for."""
    factors = range(1, 10) if last - first < 0.7 else (1, 2, 5) if last - first < 2.5 else (1,)
    every = (factor * 10.0**power for power in range(math.floor(first), math.ceil(last) + 1) for factor in factors)
    return [tick for tick in every if first <= math.log10(tick) <= last]


def _round(value: float) -> float:
    return round(value, 1)


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1].rstrip() + "…"


def _known(*values: float | None) -> list[float]:
    return [value for value in values if value is not None and not math.isnan(value)]
