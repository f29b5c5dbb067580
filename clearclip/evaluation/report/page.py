"""The page itself: sections of HTML from a `Report`. It needs no other file and no network, and may ask for neither."""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

import clearclip
from clearclip.evaluation.report.figures import Dot, Point, dots, gains, scatter
from clearclip.evaluation.report.gather import FEW, DataSet, Entry, Report
from clearclip.evaluation.report.markup import Content, Markup, escaped, markup, table, tag
from clearclip.evaluation.report.pictures import Album, Shown
from clearclip.evaluation.statistics import Confused, Interval, format_difference, format_score, noisy

WHOLE_MATRIX, PART_OF_MATRIX = 24, 20  # classes: up to so many all are shown, else so many that are confused most
WON = 12  # classes that a plot shows at either end
OPEN_CLASSES = 25  # a table of more classes is folded
NAMES = {
    "voc20": "PASCAL VOC 20", "voc21": "PASCAL VOC 21", "context59": "PASCAL Context 59",
    "context60": "PASCAL Context 60", "coco_object": "COCO-Object", "coco_stuff164k": "COCO-Stuff",
    "city_scapes": "Cityscapes", "ade20k": "ADE20K", "avg5": "mean of 5 without background", "avg8": "mean of all 8",
}  # fmt: skip
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{}'; base-uri 'none'"


def page(report: Report, albums: Mapping[str, Album], title: str = "Segmentation results") -> str:
    """The whole page."""
    sets = [one for one in report.data_sets if not one.is_average]
    body = markup(
        _header(report, sets, title),
        tag(
            "main",
            _overview(report),
            _plots(sets),
            (_data_set(one, albums.get(one.name), number) for number, one in enumerate(sets)),
            _runs(sets),
            _reading(report),
        ),
        tag("footer", f"Made by clearclip {clearclip.__version__} on {datetime.now():%d %B %Y, %H:%M}."),
    )
    script = _asset("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    head = markup(
        tag("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{escaped(POLICY.format(digest))}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Markup(_asset("style.css"))),
    )
    whole = tag("html", tag("head", head), tag("body", body, tag("script", Markup(script))), lang="en")
    return f"<!doctype html>\n{whole}\n"


@cache
def _asset(name: str) -> str:
    return (files("clearclip.evaluation.report") / name).read_text(encoding="utf-8")


# --- the whole --------------------------------------------------------------------------------------------------------


def _header(report: Report, sets: Sequence[DataSet], title: str) -> Markup:
    runs = sum(len(one.entries) for one in sets)
    shared = ", ".join(value if key == "method" else f"{key} {value}" for key, value in report.common.items())
    links = [("Table", "#table"), ("Plots", "#plots"), *((_name(one.name), f"#d{i}") for i, one in enumerate(sets))]
    return tag(
        "header",
        tag("h1", title),
        tag(
            "p",
            _count(runs, "run"), " of ", _count(len(report.rows), "method or setting", "methods and settings"),
            " on ", _count(len(sets), "data set"), f". All have {shared}." if shared else ".",
            class_="soft",
        ),
        tag("nav", (tag("a", name, href=link) for name, link in [*links, ("Runs", "#runs")]), aria_label="Sections"),
        _notes(report.notes),
    )  # fmt: skip


def _notes(notes: Sequence[str]) -> Markup | None:
    if not notes:
        return None
    return tag("ul", (tag("li", note) for note in notes), class_="notes soft")


def _overview(report: Report) -> Markup:
    columns = report.data_sets
    head = [_row_head(report), *(_name(one.name) for one in columns)]
    rows = []
    for index, row in enumerate(report.rows):
        cells = [next((entry for entry in one.entries if entry.row == index), None) for one in columns]
        name, *details = filter(None, row.values())
        first = markup(name, tag("small", ", ".join(details)) if details else None)
        rows.append([first, *(_score_cell(one, entry) for one, entry in zip(columns, cells))])
    caption = markup(
        "mIoU in percent ± half its 95 % interval over images; below it, the difference from ",
        f"{columns[0].reference} on the same images, with its interval, and the published number, with the difference "
        "from it. Bold: the best of a column.",
    )
    return markup(tag("h2", "Results", id="table"), table(head, rows, caption))


def _row_head(report: Report) -> str:
    names = list(report.rows[0])
    return names[0] if len(names) == 1 else f"{names[0]} ({', '.join(names[1:])})"


def _score_cell(data_set: DataSet, entry: Entry | None) -> Markup:
    if entry is None or entry.interval is None:
        return tag("td", data_value="")
    score = format_score(entry.interval)
    best = len(data_set.rivals) > 1 and entry is data_set.top
    return tag(
        "td",
        tag("b", score) if best else score,
        _difference(entry.difference),
        _published(entry),
        _part(entry),
        data_value=f"{entry.interval.value:.4f}",
    )


def _difference(gain: Interval | None) -> Markup | None:
    if gain is None or math.isnan(gain.value):
        return None
    kind = "even" if noisy(gain) else "more" if gain.value > 0 else "less"
    return tag("small", _minus(f"{format_difference(gain)} {_bounds(gain)}"), class_=f"{kind}-text")


def _bounds(gain: Interval) -> str:
    return "" if math.isnan(gain.half_width) else f"({gain.low:+.1f} to {gain.high:+.1f})"


def _published(entry: Entry) -> Markup | None:
    beyond, published = entry.beyond_published, entry.run.get("published")
    if beyond is None:
        return None
    source = entry.run.get("published_source")
    return tag("small", _minus(f"published {published:.1f}, {beyond:+z.1f}"), title=source)


def _part(entry: Entry) -> Markup | None:
    """What says that a run is on a part of its benchmark."""
    if not entry.partial:
        return None
    text = f"{entry.run['images']:,} of {entry.run['benchmark_images']:,} images"
    return tag("small", tag("span", text, class_="badge", title="a part of the benchmark: no number to compare"))


def _plots(sets: Sequence[DataSet]) -> Markup:
    cards = []
    for one in sets:
        lines = [_dot(one, entry) for entry in one.entries if entry.interval is not None]
        if lines:
            name = f"mIoU on {_name(one.name)}"
            cards.append(tag("figure", tag("h3", name), dots(lines, name), class_="card"))
    costs, missing = _costs(sets)
    return markup(
        tag("h2", "Plots", id="plots"),
        tag(
            "p",
            "Dots: mIoU, hollow on a part of a benchmark; lines: its 95 % interval; diamonds: published numbers.",
            class_="soft",
        ),
        tag("div", cards, class_="cards"),
        tag("h3", "What it costs"),
        tag("div", costs, class_="cards") if costs else None,
        tag("p", missing, class_="soft") if missing else None,
    )


def _dot(data_set: DataSet, entry: Entry) -> Dot:
    assert entry.interval is not None
    top = entry is data_set.top and len(data_set.rivals) > 1
    published = entry.run.get("published") if entry.beyond_published is not None else None
    note = format_score(entry.interval) + (f", {entry.run['images']} images" if entry.partial else "")
    kinds = " ".join(kind for kind, holds in (("top", top), ("part", entry.partial)) if holds)
    return Dot(entry.label, entry.interval, published, note, kinds)


def _costs(sets: Sequence[DataSet]) -> tuple[list[Markup], str]:
    cards = []
    for one in sets:
        timed = [entry for entry in one.entries if entry.seconds and entry.mIoU is not None]
        if not timed:
            continue
        points = [
            Point(entry.label, entry.seconds or 0.0, entry.mIoU or 0.0, "top" if entry is one.top else "")
            for entry in timed
        ]
        name = f"Seconds an image and mIoU, {_name(one.name)}"
        devices = sorted({str(entry.run.get("device")) for entry in timed})
        figure = scatter(points, name, "seconds an image, median", "mIoU")
        cards.append(tag("figure", tag("h3", name), figure, tag("figcaption", "; ".join(devices)), class_="card"))
    shared = sum(entry.shared for one in sets for entry in one.entries)
    missing = (
        f"{_count(shared, 'run')} shared a pass over the images with others, so that the time of each alone is not "
        "known: evaluate them one by one to measure it."
        if shared
        else "" if cards else "The times of images are not known: their records were not found."
    )  # fmt: skip
    return cards, missing


# --- a data set -------------------------------------------------------------------------------------------------------


def _data_set(data_set: DataSet, album: Album | None, number: int) -> Markup:
    return markup(
        tag("h2", _name(data_set.name), id=f"d{number}"),
        _classes(data_set),
        _won(data_set),
        _confusions(data_set),
        _pictures(data_set, album),
    )


def _classes(data_set: DataSet) -> Markup | None:
    names = data_set.classes
    if not names:
        return None
    rivals = [entry.row for entry in data_set.rivals]
    rows = []
    for name in names:
        values = [(entry.run.get("per_class_IoU") or {}).get(name) for entry in data_set.entries]
        known = [v for v, entry in zip(values, data_set.entries) if v is not None and entry.row in rivals]
        top = max(known) if len({*known}) > 1 else None
        rows.append([name, *(_heat(v, v is not None and v == top) for v in values)])
    head = ["class", *(markup(entry.label, _part(entry)) for entry in data_set.entries)]
    caption = "IoU of each class in percent. Bold: the best of the methods on the most images."
    return _folded(
        "IoU by class", _count(len(names), "class", "classes"), table(head, rows, caption, class_="heat"),
        is_open=len(names) <= OPEN_CLASSES,
    )  # fmt: skip


def _heat(value: float | None, best: bool) -> Markup:
    if value is None:
        return tag("td", "–", data_value="")
    text = f"{value:.1f}"
    return tag("td", tag("b", text) if best else text, style=f"--p:{value:.0f}")


def _won(data_set: DataSet) -> Markup | None:
    """Class by class, what each method wins or loses against the reference."""
    parts = []
    for entry in data_set.entries:
        if entry.gain is None:
            continue
        lines = [(name, one) for name, one in zip(entry.classes, entry.gain.IoU) if not math.isnan(one.value)]
        lines.sort(key=lambda item: -item[1].value)
        sure = [one for _, one in lines if not noisy(one)]
        wins = sum(one.value > 0 for one in sure)
        summary = f"wins {wins}, loses {len(sure) - wins}, {len(lines) - len(sure)} ≈"
        shown = lines if len(lines) <= 2 * WON else [*lines[:WON], *lines[-WON:]]
        title = f"IoU of {entry.label} less that of {data_set.reference}"
        less = tag("p", f"The {WON} classes at either end, of {len(lines)}.", class_="soft")
        figure = gains(shown, title) if shown else None
        parts.append(_folded(entry.label, summary, less if shown != lines else None, figure))
    if not parts:
        return None
    words = (
        f"IoU of each class less that of {data_set.reference} on the same images. Grey, with ≈: the 95 % interval "
        f"holds 0, or the class is on fewer than {FEW} images. Of a rare class few images decide: its interval is too "
        "narrow."
    )
    return _folded(
        f"Classes won and lost against {data_set.reference}", "", tag("p", words, class_="soft"), parts
    )  # fmt: skip


def _confusions(data_set: DataSet) -> Markup | None:
    parts = []
    for entry in data_set.entries:
        matrix, pairs = _matrix(entry), _pairs(entry)
        if matrix or pairs:
            parts.append(_folded(entry.label, _worst_pair(entry), tag("div", matrix, pairs, class_="beside")))
    return _folded("Confusions", "ground truth × prediction", parts) if parts else None


def _pairs(entry: Entry) -> Markup | None:
    """What is confused most: from the records, or as the result has it where they are gone."""
    pairs = entry.pairs or [Confused(*pair) for pair in entry.run.get("confused") or ()]
    if not pairs:
        return None
    rows = [[pair.truth, pair.prediction, f"{pair.percent:.1f}", f"{pair.pixels:,}"] for pair in pairs]
    head = ["truth", "taken for", "% of the class", "pixels"]
    return table(head, rows, "What is confused most, by pixels", left={1})


def _worst_pair(entry: Entry) -> str:
    return f"{entry.pairs[0].truth} for {entry.pairs[0].prediction} most" if entry.pairs else ""


def _matrix(entry: Entry) -> Markup | None:
    """The confusion matrix in percent of each row; of many classes, those that are confused most."""
    if entry.total is None:
        return None
    total, count = entry.total, len(entry.total)
    wrong = total.copy()
    np.fill_diagonal(wrong, 0)
    weight = wrong.sum(1) + wrong[:, :count].sum(0)
    seen = np.flatnonzero(total.sum(1) + total[:, :count].sum(0))
    part = len(seen) > WHOLE_MATRIX
    shown = np.sort(seen[np.argsort(-weight[seen], kind="stable")[:PART_OF_MATRIX]]) if part else seen
    shares = 100 * total / np.maximum(total.sum(1, keepdims=True), 1)
    rest = shares.sum(1) - shares[:, shown].sum(1)
    others = bool(rest[shown].max(initial=0) >= 0.5)
    head = ["", *(entry.classes[index] for index in shown), *(["others"] if others else [])]
    rows = []
    for index in shown[total.sum(1)[shown] > 0]:
        cells = [_share(shares[index, other], index == other) for other in shown]
        rows.append([entry.classes[index], *cells, *([_share(rest[index])] if others else [])])
    which = f"The {len(shown)} of {len(seen)} classes that are confused most. " if part else ""
    caption = f"{which}Rows: ground truth; columns: prediction; percent of the row's pixels."
    return table(head, rows, caption, sortable=False, class_="matrix")


def _share(percent: float, right: bool = False) -> Markup:
    text = f"{percent:.0f}" if percent >= 0.5 else ""
    kinds = " ".join(kind for kind, holds in (("right", right), ("strong", percent >= 60)) if holds)
    return tag("td", text, style=f"--p:{percent:.0f}" if text else None, class_=kinds or None)


def _pictures(data_set: DataSet, album: Album | None) -> Markup | None:
    top = data_set.top
    if top is None or not (top.worst or top.best):
        return None
    album = album or Album()
    parts: list[Content] = []
    for title, images in (("Worst images", top.worst), ("Best images", top.best)):
        shots = [_shot(sample, score, album.shown.get(sample)) for sample, score in images]
        parts += [tag("h3", f"{title} of {top.label}"), tag("div", shots, class_="shots")]
    note = tag("p", f"No pictures, or not all: {album.missing}", class_="soft") if album.missing else None
    return _folded("Images", "the worst and the best, by their own mIoU", note, parts, is_open=bool(album.shown))


def _shot(sample: str, score: float, shown: Shown | None) -> Markup:
    name = sample.rpartition("#")[0] or sample
    caption = tag("figcaption", name, ", mIoU ", tag("b", f"{score:.1f}"))
    if shown is None:
        return tag("figure", caption, class_="shot")
    views = [
        tag("figure", tag("img", src=address, alt=f"{title}: {name}", loading="lazy"), tag("figcaption", title))
        for title, address in shown.views
    ]
    legend = [tag("li", _swatch(colour), label) for label, colour in shown.legend]
    return tag("figure", caption, tag("div", views, class_="views"), tag("ul", legend, class_="legend"), class_="shot")


def _swatch(colour: str) -> Markup:
    square = tag("rect", width=10, height=10, rx=2, fill=colour)
    return tag("svg", square, viewBox="0 0 10 10", aria_hidden="true")


# --- below ------------------------------------------------------------------------------------------------------------


def _runs(sets: Sequence[DataSet]) -> Markup:
    head = [
        "run",
        "data set",
        "date",
        "images",
        "s/image",
        "mIoU",
        "aAcc",
        "mAcc",
        "text",
        "device",
        "config",
        "weights",
    ]
    rows = [_run(one, entry) for one in sets for entry in one.entries]
    made = table(head, rows, "Every run that the report shows, and what it was made with", left={1, 2, 8, 9, 10, 11})
    return markup(tag("h2", "Runs", id="runs"), _folded("All runs", _count(len(rows), "run"), made))


def _run(data_set: DataSet, entry: Entry) -> list[Content]:
    run = entry.run
    return [
        entry.label,
        data_set.name,
        str(run.get("date"))[:10],
        tag("td", f"{run.get('images'):,}", data_value=run.get("images")),
        "" if entry.seconds is None else f"{entry.seconds:.2f}",
        *(_number(run.get(name)) for name in ("mIoU", "aAcc", "mAcc")),
        *(run.get(name) for name in ("text", "device", "config")),
        str(run.get("weights_hash") or "")[:12],
    ]


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.2f}"


def _reading(report: Report) -> Markup:
    reference = report.data_sets[0].reference
    lines = (
        "± is half of the 95 % interval of the bootstrap over images: how much a score would move with other images of "
        "the same source. It says nothing of other data sets, mistakes in labels, or prompts.",
        f"Differences from {reference} are paired: both runs are scored on the same resamples of the same images. "
        "≈ marks a difference whose interval holds 0; it may be chance. Two intervals that overlap do not make two "
        "methods equal.",
        "A run on a part of a benchmark is marked with its number of images and is compared with nothing published.",
        "A protocol with a star, such as clearclip*, has settings that differ from the protocol's.",
    )
    return markup(tag("h2", "How to read this"), tag("ul", (tag("li", line) for line in lines), class_="notes"))


def _folded(title: str, note: str, *content: Content, is_open: bool = False) -> Markup:
    summary = tag("summary", title, " ", tag("small", note) if note else None)
    return tag("details", summary, *content, open=is_open)


def _name(data_set: str) -> str:
    return NAMES.get(data_set, data_set)


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def _minus(text: str) -> str:
    """The text with the sign that is as wide as a plus."""
    return text.replace("-", "−")
