"""The table of results, a row for each method and a column for each data set: as dicts, as text, as Markdown."""

import json
import re
import shutil
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from statistics import fmean
from typing import Any, TypeAlias

from clearclip.errors import printable
from clearclip.evaluation.results.record import Result, instant, plain

Run: TypeAlias = dict[str, Any]  # a result, or a row of the workbook: some keys may be missing
Row: TypeAlias = dict[str, Any]  # of the table
Texts: TypeAlias = dict[str, str]  # a row as it is shown
Column: TypeAlias = list[str]  # its lines, equally wide

# What makes a row of the table: whatever decides a number, apart from the data set.
ROW = ("method", "backbone", "pretrained", "protocol", "altered", "text", "vocabulary", "precision", "resize")
NO_BACKGROUND = ("voc20", "city_scapes", "context59", "ade20k", "coco_stuff164k")
BENCHMARKS = ("voc21", "context60", "coco_object", *NO_BACKGROUND)
AVERAGES = {"avg5": NO_BACKGROUND, "avg8": BENCHMARKS}  # the two that papers quote
FOLDED = ("interval", "images", "low", "high")  # columns that texts show within others


def table(records: Iterable[Result | Run]) -> list[Row]:
    """One row (a dict; all have the same keys) for each method and all else in `ROW`.

    A data set `voc20` has these columns:

    - `voc20`, the mIoU of the latest run. A run on fewer images never takes the place of one on more.
    - `voc20 interval`, half the width of its 95 % interval.
    - `voc20 images` of a run on fewer images than the benchmark has. It is not compared with published numbers.
    - `voc20 published` and `voc20 difference`, which has no interval: published runs left no records.
    - `voc20 vs CLIP`, `… low` and `… high`: the difference of two runs on the same images and its 95 % interval.

    The protocol of runs that altered it has a star, `clearclip*`, and what they altered is in `altered`. Weights that
    share a tag and differ are told apart by their hash. `avg5` and `avg8` follow where a row has all their sets.
    Empty columns are left out. Plain dicts: `pandas.DataFrame(table(records))` works.
    """
    cells = standing(records)
    measured = [name for runs in cells.values() for name in runs if name not in AVERAGES]
    others = list(dict.fromkeys(other for runs in cells.values() for run in runs.values() for other in run["others"]))
    rows = []
    for key, runs in cells.items():
        row = {name: text or None for name, text in zip(ROW, key)}
        for name in dict.fromkeys([*BENCHMARKS, *measured, *AVERAGES]):
            row |= _cell(name, runs.get(name), others)
        rows.append(row)
    filled = [name for name in (rows or [{}])[0] if any(row[name] is not None for row in rows)]
    return [{name: row[name] for name in filled} for row in rows]


def standing(records: Iterable[Result | Run]) -> dict[tuple[str, ...], dict[str, Run]]:
    """The runs that `table` shows: of each row, by the values of `ROW`, and each data set the one that stands.

    Averages are among the data sets; they have `mIoU`, `images`, `benchmark_images` and `published` alone.
    """
    cells: dict[tuple[str, ...], dict[str, Run]] = {}
    for run in sorted(_identified(map(plain, records)), key=_standing):  # the last one stands
        cells.setdefault(tuple(run[name] for name in ROW), {})[run["dataset"]] = run
    for runs in cells.values():
        runs |= {name: _average(runs, parts) for name, parts in AVERAGES.items() if runs.keys() >= set(parts)}
    return dict(sorted(cells.items(), key=lambda item: item[0][1:]))  # methods as they were run


def is_partial(run: Result | Run) -> bool:
    """Whether a run is on fewer images than its benchmark has: it is not compared with published numbers."""
    images, whole = run.get("images"), run.get("benchmark_images")
    return images is not None and whole is not None and images < whole


def as_markdown(rows: list[Row]) -> str:
    """`table(...)` as Markdown: a line with what all rows share, and a table of the rest."""
    texts = _texts(rows)
    if not texts:
        return ""
    keys, shared = _shared(texts)
    names = [*keys, *_scores(texts)]
    rule = ["---" if name in ROW else "---:" for name in names]
    lines = [[_escaped(name) for name in names], rule, *([_escaped(row[name]) for name in names] for row in texts)]
    markdown = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{_escaped(shared)}\n\n{markdown}" if shared else markdown


def as_text(rows: list[Row], width: int | None = None) -> str:
    """`table(...)` for a terminal of `width` columns (default: of this one).

    What all rows share is said once, above; so are rows whose names take half of the width, by number. Data sets that
    do not fit go into further blocks, below.
    """
    texts = _texts(rows)
    if not texts:
        return "no results"
    width = width or shutil.get_terminal_size().columns
    keys, shared = _shared(texts)
    names, legend = [_column(key, key, texts) for key in keys], []
    if _length(names) > width / 2:
        numbers = [{"#": str(number)} for number in range(1, len(texts) + 1)]
        names, legend = [_column("#", "#", numbers)], _legend(keys, texts, width)
    blocks = ["\n".join("  ".join(line).rstrip() for line in zip(*block)) for block in _blocks(names, texts, width)]
    return "\n\n".join(filter(None, [_wrapped(shared, width), "\n".join(legend), *blocks]))


# What a run is


# What names a file's contents, their hash, and what must be equal for two files of one name to be the same.
CONTENTS = (
    ("pretrained", "weights_hash", ("backbone",)),
    ("text", "text_hash", ("dataset", "backbone", "pretrained", "precision", "vocabulary", "names_hash")),
    ("vocabulary", "names_hash", ("dataset",)),
)


def _identified(records: Iterable[Run]) -> list[Run]:
    """The runs with what `ROW` names, each a string, and with their `others`: differences from other runs.

    What shares a name and differs in content shows its hash. Runs of earlier versions have fewer hashes.
    """
    runs = [run | _identity(run) for run in records]
    labels: list[dict[str, str]] = [{} for _ in runs]
    for name, hash_name, within in CONTENTS:
        groups = [tuple(run.get(key) for key in (name, *within)) for run in runs]
        hashes = defaultdict(set)
        for run, group in zip(runs, groups):
            if run.get(hash_name):
                hashes[group].add(run[hash_name])
        for run, group, label in zip(runs, groups, labels):
            if len(hashes[group]) > 1 and run.get(hash_name):
                label[name] = f"{run[name]} ({str(run[hash_name])[:8]})"
    return [run | label for run, label in zip(runs, labels)]


def _identity(run: Run) -> Run:
    settings = _mapping(run.get("settings"))
    altered = settings.get("altered") or ()
    identity = {name: str(run.get(name) or "") for name in ROW}
    return identity | dict(
        protocol=identity["protocol"] + ("*" if altered else ""),
        altered=", ".join(f"{key}={settings[key]}" for key in altered if key in settings),
        text=_starred(identity["text"], run["dataset"]),
        vocabulary=_starred(identity["vocabulary"], run["dataset"]),
        resize=settings.get("resize") or "cv2",  # the only one before it was recorded
        others=_mapping(run.get("differences")),
    )


def _mapping(value: dict[str, Any] | str | None) -> dict[str, Any]:
    """A dict, which the workbook holds as JSON; empty for None."""
    return (json.loads(value) if isinstance(value, str) else value) or {}


def _starred(name: str, dataset: str) -> str:
    """`cls_voc20.txt` as `cls_*.txt` and `ade150.single.safetensors` as `*.single.safetensors`.

    Files that differ by the data set they are made for would otherwise make a row each.
    """
    return re.sub(r"[^/]*?(\.[^/]+\.safetensors)$", r"*\1", name.replace(dataset, "*"))


def _standing(run: Run) -> tuple[float, datetime]:
    """Sort key: of several runs in a cell the one on most images stands, and of these the latest."""
    whole = run.get("benchmark_images") or float("inf")
    return min(run.get("images") or 0, whole), instant(run["date"])


# A cell


def _cell(name: str, run: Run | None, others: Sequence[str]) -> Row:
    """The columns of one data set, None where there is nothing to say."""
    columns = (name, *(f"{name} {column}" for column in ("interval", "images", "published", "difference")))
    versus = (f"{name} vs {other}{bound}" for other in others for bound in ("", " low", " high"))
    cell: Row = dict.fromkeys((*columns, *versus))
    if run is None or run["mIoU"] is None:
        return cell
    score = run["mIoU"]
    cell |= {name: score, f"{name} interval": run.get("interval")}
    for other, (difference, low, high) in run["others"].items():
        column = f"{name} vs {other}"
        cell |= {column: difference, f"{column} low": low, f"{column} high": high}
    if is_partial(run):
        return cell | {f"{name} images": run["images"]}
    whole, published = run.get("benchmark_images"), run.get("published")
    compared = None not in (whole, published)
    return cell | {f"{name} published": published, f"{name} difference": score - published if compared else None}


def _average(runs: Mapping[str, Run], parts: Sequence[str]) -> Run:
    """The run that `parts` would be as one data set. No interval: some of them share their images."""
    average: Run = {"others": {}}
    for key in ("mIoU", "published", "images", "benchmark_images"):
        values: list[Any] = [runs[part].get(key) for part in parts]
        average[key] = None if None in values else sum(values) if key.endswith("images") else fmean(values)
    return average


# As text


def is_uncertain(row: Row, name: str) -> bool:
    """Whether the column `name` of `row` is a difference whose interval holds 0."""
    low, high = row.get(f"{name} low"), row.get(f"{name} high")
    return low is not None and high is not None and low <= 0 <= high


def _texts(rows: list[Row]) -> list[Texts]:
    """The table as strings; what qualifies a number is in its cell: `79.33 ± 1.92 (108 img)`, `≈+0.10`."""
    shown = [name for name in (rows or [{}])[0] if not _is_folded(name, rows[0])]
    return [{name: _text(row, name) for name in shown} for row in rows]


def _is_folded(name: str, row: Row) -> bool:
    column, _, part = name.rpartition(" ")
    return part in FOLDED and column in row


def _text(row: Row, name: str) -> str:
    value, interval, images = row[name], row.get(f"{name} interval"), row.get(f"{name} images")
    if not isinstance(value, int | float):
        return printable(str(value or ""))
    text = f"{value:+.2f}" if _is_difference(name) else f"{value:.2f}"
    text = f"{'≈' if is_uncertain(row, name) else ''}{text}"
    text += "" if interval is None else f" ± {interval:.2f}"
    return text + (f" ({images} img)" if images else "")


def _is_difference(name: str) -> bool:
    return name.endswith(" difference") or " vs " in name


def _shared(rows: list[Texts]) -> tuple[list[str], str]:
    """The names in `ROW` by which rows differ, and a text of what all have in common."""
    keys = [name for name in ROW if name == "method" or len({row.get(name) for row in rows}) > 1]
    return keys, _description([name for name in ROW if name not in keys], rows[0])


def _description(names: Sequence[str], row: Texts) -> str:
    return ", ".join(row[name] if name == "method" else f"{name} {row[name]}" for name in names if row.get(name))


def _legend(keys: Sequence[str], rows: list[Texts], width: int) -> list[str]:
    lines = [f"{number}  {_description(keys, row)}" for number, row in enumerate(rows, 1)]
    return [_wrapped(line, width) for line in lines]


def _blocks(names: list[Column], rows: list[Texts], width: int) -> list[list[Column]]:
    """Lists of columns that fit into `width`; `names`, the columns that tell rows apart, begin each of them."""
    blocks = [names]
    for group in _groups(rows, width - _length(names) - 2):
        if blocks[-1] != names and _length(blocks[-1] + group) > width:
            blocks.append(names)
        blocks[-1] = blocks[-1] + group
    return blocks


def _groups(rows: list[Texts], width: int) -> Iterator[list[Column]]:
    """The columns of each data set; one by one, with their full names, where they are wider than `width`."""
    names: dict[str, list[str]] = {}
    for name in _scores(rows):
        dataset = next((dataset for dataset in names if name.startswith(f"{dataset} ")), name)
        names.setdefault(dataset, []).append(name)
    for dataset, group in names.items():
        columns = [_column(name, name.removeprefix(f"{dataset} "), rows) for name in group]
        if _length(columns) <= width:
            yield columns
        else:
            yield from ([_column(name, name, rows)] for name in group)


def _scores(rows: list[Texts]) -> list[str]:
    return [name for name in rows[0] if name not in ROW]


def _column(name: str, header: str, rows: list[Texts]) -> Column:
    """Equally wide strings: header, rule, cells."""
    texts = [printable(header), "", *(row[name] for row in rows)]
    width = max(map(_width, texts))
    texts[1] = "-" * width
    left = name in (*ROW, "#")
    return [text + _padding(text, width) if left else _padding(text, width) + text for text in texts]


def _padding(text: str, width: int) -> str:
    return " " * (width - _width(text))


def _length(columns: list[Column]) -> int:
    return sum(_width(column[0]) for column in columns) + 2 * (len(columns) - 1)


def _width(text: str) -> int:
    """The columns that `text` takes on a terminal: two for a wide character, none for a combining mark."""
    marks = sum(unicodedata.category(character) in ("Mn", "Me", "Cf") for character in text)
    return len(text) - marks + sum(unicodedata.east_asian_width(character) in "WF" for character in text)


def _wrapped(text: str, width: int) -> str:
    """`text` in lines of at most `width`, except for longer words."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and _width(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """`text` as Markdown shows it literally."""
    return re.sub(r"([\\`*<\[|])", r"\\\1", text)
