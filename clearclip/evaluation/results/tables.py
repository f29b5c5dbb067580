"""The table of results, a row for each method and a column for each data set: as dicts, as text, as Markdown."""

import json
import re
import shutil
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean

from clearclip.evaluation.results.record import Result, instant, plain, printable

# What makes a row of the table: whatever decides a number, apart from the data set.
ROW = ("method", "backbone", "pretrained", "protocol", "altered", "text", "vocabulary", "precision", "resize")
NO_BACKGROUND = ("voc20", "city_scapes", "context59", "ade20k", "coco_stuff164k")
BENCHMARKS = ("voc21", "context60", "coco_object", *NO_BACKGROUND)
AVERAGES = {"avg5": NO_BACKGROUND, "avg8": BENCHMARKS}  # the two that papers quote
FOLDED = ("interval", "images", "low", "high")  # columns that texts show within others


def table(records: Iterable[Result]) -> list[dict]:
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
    cells = {}
    for run in sorted(_identified(map(plain, records)), key=_standing):  # the last one stands
        cells.setdefault(tuple(run[name] for name in ROW), {})[run["dataset"]] = run
    measured = [name for runs in cells.values() for name in runs]
    others = list(dict.fromkeys(other for runs in cells.values() for run in runs.values() for other in run["others"]))
    rows = []
    for key, runs in sorted(cells.items(), key=lambda item: item[0][1:]):  # methods as they were run
        runs |= {name: _average(runs, parts) for name, parts in AVERAGES.items() if runs.keys() >= set(parts)}
        row = {name: text or None for name, text in zip(ROW, key)}
        for name in dict.fromkeys([*BENCHMARKS, *measured, *AVERAGES]):
            row |= _cell(name, runs.get(name), others)
        rows.append(row)
    filled = [name for name in (rows or [{}])[0] if any(row[name] is not None for row in rows)]
    return [{name: row[name] for name in filled} for row in rows]


def as_markdown(rows: list[dict]) -> str:
    """`table(...)` as Markdown: a line with what all rows share, and a table of the rest."""
    rows = _texts(rows)
    if not rows:
        return ""
    keys, shared = _shared(rows)
    names = [*keys, *_scores(rows)]
    rule = ["---" if name in ROW else "---:" for name in names]
    lines = [[_escaped(name) for name in names], rule, *([_escaped(row[name]) for name in names] for row in rows)]
    lines = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{_escaped(shared)}\n\n{lines}" if shared else lines


def as_text(rows: list[dict], width: int | None = None) -> str:
    """`table(...)` for a terminal of `width` columns (default: of this one).

    What all rows share is said once, above; so are rows whose names take half of the width, by number. Data sets that
    do not fit go into further blocks, below.
    """
    rows = _texts(rows)
    if not rows:
        return "no results"
    width = width or shutil.get_terminal_size().columns
    keys, shared = _shared(rows)
    names, legend = [_column(key, key, rows) for key in keys], []
    if _length(names) > width / 2:
        numbers = [{"#": str(number)} for number in range(1, len(rows) + 1)]
        names, legend = [_column("#", "#", numbers)], _legend(keys, rows, width)
    blocks = ["\n".join("  ".join(line).rstrip() for line in zip(*block)) for block in _blocks(names, rows, width)]
    return "\n\n".join(filter(None, [_wrapped(shared, width), "\n".join(legend), *blocks]))


# What a run is


def _identified(records):
    """The runs with what `ROW` names, each a string, and with their `others`: differences from other runs."""
    runs = [run | _identity(run) for run in records]
    hashes = defaultdict(set)
    for run in runs:
        hashes[run["backbone"], run["pretrained"]].add(run.get("weights_hash"))
    for run in runs:
        ambiguous = len(hashes[run["backbone"], run["pretrained"]]) > 1
        yield run | {"pretrained": f"{run['pretrained']} ({str(run.get('weights_hash'))[:8]})"} if ambiguous else run


def _identity(run):
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


def _mapping(value):
    """A dict, which is JSON where it comes from the workbook."""
    return (json.loads(value) if isinstance(value, str) else value) or {}


def _starred(name, dataset):
    """`cls_voc20.txt` as `cls_*.txt` and `ade150.single.safetensors` as `*.single.safetensors`.

    Files that differ by the data set they are made for would otherwise make a row each.
    """
    return re.sub(r"[^/]*?(\.[^/]+\.safetensors)$", r"*\1", name.replace(dataset, "*"))


def _standing(run):
    whole = run.get("benchmark_images") or float("inf")
    return min(run.get("images") or 0, whole), instant(run["date"])


# A cell


def _cell(name, run, others):
    """The columns of one data set, None where there is nothing to say."""
    score = run["mIoU"] if run else None
    cell = dict.fromkeys((name, *(f"{name} {column}" for column in ("interval", "images", "published", "difference"))))
    cell |= {f"{name} vs {other}{bound}": None for other in others for bound in ("", " low", " high")}
    if score is None:
        return cell
    cell |= {name: score, f"{name} interval": run.get("interval")}
    for other, (difference, low, high) in run["others"].items():
        versus = f"{name} vs {other}"
        cell |= {versus: difference, f"{versus} low": low, f"{versus} high": high}
    images, whole, published = run.get("images"), run.get("benchmark_images"), run.get("published")
    if whole is not None and images < whole:
        return cell | {f"{name} images": images}
    compared = None not in (whole, published)
    return cell | {f"{name} published": published, f"{name} difference": score - published if compared else None}


def _average(runs, parts):
    """The run that `parts` would be as one data set. No interval: some of them share their images."""
    average = {"others": {}}
    for key in ("mIoU", "published", "images", "benchmark_images"):
        values = [runs[part].get(key) for part in parts]
        average[key] = None if None in values else (sum if key.endswith("images") else fmean)(values)
    return average


# As text


def is_uncertain(row: dict, name: str) -> bool:
    """Whether the column `name` of `row` is a difference whose interval holds 0."""
    low, high = row.get(f"{name} low"), row.get(f"{name} high")
    return None not in (low, high) and low <= 0 <= high


def _texts(rows):
    """The table as strings; what qualifies a number is in its cell: `79.33 ± 1.92 (108 img)`, `≈+0.10`."""
    shown = [name for name in (rows or [{}])[0] if not _is_folded(name, rows[0])]
    return [{name: _text(row, name) for name in shown} for row in rows]


def _is_folded(name, row):
    column, _, part = name.rpartition(" ")
    return part in FOLDED and column in row


def _text(row, name):
    value, interval, images = row[name], row.get(f"{name} interval"), row.get(f"{name} images")
    if not isinstance(value, int | float):
        return printable(str(value or ""))
    text = f"{value:+.2f}" if _is_difference(name) else f"{value:.2f}"
    text = f"{'≈' if is_uncertain(row, name) else ''}{text}"
    text += "" if interval is None else f" ± {interval:.2f}"
    return text + (f" ({images} img)" if images else "")


def _is_difference(name):
    return name.endswith(" difference") or " vs " in name


def _shared(rows):
    """The names of what tells rows apart, and a text of what all have in common."""
    keys = [name for name in ROW if name == "method" or len({row.get(name) for row in rows}) > 1]
    return keys, _description([name for name in ROW if name not in keys], rows[0])


def _description(names, row):
    return ", ".join(row[name] if name == "method" else f"{name} {row[name]}" for name in names if row.get(name))


def _legend(keys, rows, width):
    lines = [f"{number}  {_description(keys, row)}" for number, row in enumerate(rows, 1)]
    return [_wrapped(line, width) for line in lines]


def _blocks(names, rows, width):
    """Lists of columns that fit into `width`; `names`, the columns that tell rows apart, begin each of them."""
    blocks = [names]
    for group in _groups(rows, width - _length(names) - 2):
        if blocks[-1] != names and _length(blocks[-1] + group) > width:
            blocks.append(names)
        blocks[-1] = blocks[-1] + group
    return blocks


def _groups(rows, width):
    """The columns of each data set; one by one, with their full names, where they are wider than `width`."""
    names = {}
    for name in _scores(rows):
        dataset = next((dataset for dataset in names if name.startswith(f"{dataset} ")), name)
        names.setdefault(dataset, []).append(name)
    for dataset, group in names.items():
        columns = [_column(name, name.removeprefix(f"{dataset} "), rows) for name in group]
        if _length(columns) <= width:
            yield columns
        else:
            yield from ([_column(name, name, rows)] for name in group)


def _scores(rows):
    return [name for name in rows[0] if name not in ROW]


def _column(name, header, rows):
    """Equally wide strings: header, rule, cells."""
    texts = [printable(header), "", *(row[name] for row in rows)]
    width = max(map(_width, texts))
    texts[1] = "-" * width
    left = name in (*ROW, "#")
    return [text + _padding(text, width) if left else _padding(text, width) + text for text in texts]


def _padding(text, width):
    return " " * (width - _width(text))


def _length(columns):
    return sum(_width(column[0]) for column in columns) + 2 * (len(columns) - 1)


def _width(text):
    """The columns that a terminal needs for `text`: two for a wide character, none for a combining mark."""
    marks = sum(unicodedata.category(character) in ("Mn", "Me", "Cf") for character in text)
    return len(text) - marks + sum(unicodedata.east_asian_width(character) in "WF" for character in text)


def _wrapped(text, width):
    """`text` in lines of at most `width`, but for longer words."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and _width(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def _escaped(text):
    """`text` as Markdown shows it literally."""
    return re.sub(r"([\\`*<\[|])", r"\\\1", text)
