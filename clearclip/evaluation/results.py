"""What a run leaves behind: `result.json` in its work dir, a line in `results.xlsx`, a cell of the table."""

import json
import math
import re
import shutil
import textwrap
from collections.abc import Iterable
from datetime import datetime
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import TypedDict

from filelock import FileLock

from clearclip.errors import UserError
from clearclip.paths import atomic_write, check_writable


class Result(TypedDict):
    """One evaluation run. Scores are percent."""

    date: str  # ISO 8601 with offset
    method: str
    backbone: str
    pretrained: str  # weights tag
    dataset: str
    protocol: str
    vocabulary: str  # class file
    text: str  # template set or embedding file
    mIoU: float
    aAcc: float
    mAcc: float
    per_class_IoU: dict[str, float | None]  # null: in neither the ground truth nor the prediction
    images: int
    benchmark_images: int | None  # images of the whole benchmark; null: this set is part of none
    published: float | None
    published_source: str | None
    seconds: float
    images_per_second: float
    device: str
    precision: str
    versions: dict[str, str]
    config: str
    settings: dict
    weights_hash: str


ROW = ("method", "backbone", "pretrained", "protocol", "text", "vocabulary")  # what makes a row of the table
NO_BACKGROUND = ("voc20", "city_scapes", "context59", "ade20k", "coco_stuff164k")
BENCHMARKS = ("voc21", "context60", "coco_object", *NO_BACKGROUND)
AVERAGES = {"avg5": NO_BACKGROUND, "avg8": BENCHMARKS}  # the two that papers quote
MEASURES = ("mIoU", "published", "images", "benchmark_images")  # what the table needs of a run
RUNS = ("run", *(key for key in Result.__annotations__ if key != "per_class_IoU"))
PER_CLASS = ("run", "date", "dataset", *ROW, "class", "IoU")


def write_result(record: Result, work_dir) -> Path:
    """Write `result.json` into `work_dir`. NaN, say the IoU of an absent class, becomes null."""
    text = json.dumps(_plain(record), indent=2, ensure_ascii=False, default=str)
    path = Path(work_dir) / "result.json"
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def read_result(path) -> Result:
    """Read a `result.json`. Raises `UserError` where it is missing, damaged or something else."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): run eval.py to make it") from None
    except ValueError:
        raise UserError(f"{path} is damaged, it is no JSON: run eval.py again to remake it") from None
    missing = [key for key in Result.__annotations__ if not isinstance(record, dict) or key not in record]
    if missing:
        raise UserError(f"{path} is no result, it lacks {', '.join(missing)}: run eval.py to make one")
    return record


def table(records: Iterable[Result]) -> list[dict]:
    """One row (a dict; all have the same keys) per method, backbone, weights, protocol, text and vocabulary.

    A data set has up to four columns: `voc20`, the mIoU of the latest run; `voc20 published`; `voc20
    difference`; `voc20 images` of a run on fewer images than the benchmark has, which is never compared with
    the published number. The protocol of runs that altered it has a star, `clearclip*`: they have a row of their
    own. `avg5` and `avg8` follow where a row has all their sets. Empty columns are left out.
    Plain dicts: `pandas.DataFrame(table(records))` works.
    """
    latest = {}
    for run in sorted(map(_plain, records), key=lambda run: _instant(run["date"])):
        run["protocol"] = f"{run['protocol']}{'*' if _altered(run) else ''}"
        key = (*(run[name] for name in ROW[:4]), *(_starred(run[name], run["dataset"]) for name in ROW[4:]))
        latest.setdefault(tuple(str(part or "") for part in key), {})[run["dataset"]] = run
    others = [name for runs in latest.values() for name in runs]
    rows = []
    for key, runs in sorted(latest.items(), key=lambda item: item[0][1:]):  # methods as they were run
        runs |= {name: _average(runs, parts) for name, parts in AVERAGES.items() if runs.keys() >= set(parts)}
        row = dict(zip(ROW, key))
        for name in dict.fromkeys([*BENCHMARKS, *others, *AVERAGES]):
            row |= _cell(name, runs.get(name))
        rows.append(row)
    filled = [name for name in (rows or [{}])[0] if any(row[name] is not None for row in rows)]
    return [{name: row[name] for name in filled} for row in rows]


def as_markdown(rows: list[dict]) -> str:
    """`table(...)` as a Markdown table; the number of images joins its score: `79.33 (108 img)`."""
    rows = _texts(rows)
    if not rows:
        return ""
    rule = ["---" if name in ROW else "---:" for name in rows[0]]
    lines = [rows[0], rule, *(row.values() for row in rows)]
    return "\n".join("| " + " | ".join(text.replace("|", r"\|") for text in line) + " |" for line in lines)


def as_text(rows: list[dict], width: int | None = None) -> str:
    """`table(...)` for a terminal of `width` columns (default: of this one).

    What all rows share is said once, above; data sets that do not fit go into further blocks, below.
    """
    rows = _texts(rows)
    if not rows:
        return "no results"
    width = width or shutil.get_terminal_size().columns
    keys = [name for name in ROW if name == "method" or len({row[name] for row in rows}) > 1]
    shared = ", ".join(f"{name} {rows[0][name]}" for name in ROW if name not in keys and rows[0][name])
    columns = {name: _column(name, [row[name] for row in rows]) for name in rows[0]}

    blocks = [keys]
    for _, group in groupby((name for name in columns if name not in ROW), lambda name: name.split()[0]):
        group = list(group)
        if blocks[-1] != keys and len("  ".join(columns[name][0] for name in blocks[-1] + group)) > width:
            blocks.append(keys)
        blocks[-1] = blocks[-1] + group
    lines = [["  ".join(line).rstrip() for line in zip(*map(columns.get, block))] for block in blocks]
    shared = textwrap.fill(shared, width, break_on_hyphens=False, break_long_words=False)
    return "\n\n".join([shared, *map("\n".join, lines)]).lstrip("\n")


def append_results(records: Iterable[Result], path, saved_at=None) -> None:
    """Append runs to the workbook `path`, made if need be; other processes may append to it at the same time.

    Its sheets are `table`, rebuilt from all runs, `runs` and `per_class`; others are the user's and are kept.
    Raises `UserError` where the workbook is open, damaged or not ours. `saved_at` tells that
    message's reader where the results are kept (default: in the result.json of each run).
    """
    path, records = Path(path), [_plain(record) for record in records]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=600):
            workbook, runs, last = _open(path)
            new = [{**record, "run": number} for number, record in enumerate(records, last + 1)]
            rows = table(runs + new)
            ious = [run | {"class": c, "IoU": iou} for run in new for c, iou in run["per_class_IoU"].items()]
            if "table" in workbook:
                del workbook["table"]
            _extend(workbook, "table", rows[0] if rows else ROW, rows)
            _extend(workbook, "runs", RUNS, new)
            _extend(workbook, "per_class", PER_CLASS, ious)
            workbook.active = 0
            for sheet in workbook.worksheets:  # two selected sheets would be edited together
                sheet.sheet_view.tabSelected = sheet.title == "table"
            with atomic_write(path) as temporary:
                workbook.save(temporary)
    except (OSError, UserError) as error:
        saved_at = saved_at or "the result.json of each run"
        raise UserError(f"{_reason(error, path)}; the results are safe in {saved_at}") from None


def check_workbook(path) -> None:
    """Raise the `UserError` that `append_results` would, so that it is found before a run and not after it."""
    path = Path(path)
    check_writable(path)
    try:
        _open(path)
    except OSError as error:
        raise UserError(_reason(error, path)) from None


def _reason(error, path):
    return f"{path} cannot be written ({error}): free it or give another path" if isinstance(error, OSError) else error


def _open(path):
    """The workbook at `path`, or a new one, its runs and the highest number of a run."""
    import openpyxl  # slow, and only needed here

    if path.suffix != ".xlsx":
        raise UserError(f"{path} is no name for a workbook: let it end in .xlsx")
    for mark in (f"~${path.name}", f".~lock.{path.name}#"):  # of Excel and LibreOffice, while they edit
        if path.with_name(mark).exists():
            raise UserError(f"{path} is open in another program: close it (or remove {mark}) and run again")
    if not path.exists():
        workbook = openpyxl.Workbook()
        workbook.remove(workbook.active)
        return workbook, [], 0
    try:
        workbook = openpyxl.load_workbook(path)
        header, *lines = workbook["runs"].values if "runs" in workbook else [()]
        missing = [name for name in RUNS if name not in header]
        runs = [run for line in lines if (run := dict(zip(header, line))).get("run")]  # not those emptied
        if not missing:
            table(runs)  # fails on a cell that no longer holds a number or a date
            return workbook, runs, max((run["run"] for run in runs), default=0)
    except OSError:
        raise
    except Exception as error:  # openpyxl lets through whatever its parsers raise
        raise UserError(f"{path} is damaged ({error}): move it away and run again") from None
    raise UserError(f"{path} has no sheet 'runs' with {', '.join(missing)}: move it away and run again")


def _extend(workbook, name, columns, rows):
    """Write `rows` below those of the sheet `name`, by the names in its header."""
    new = name not in workbook
    if new:
        sheet = workbook.create_sheet(name, 0 if name == "table" else None)
        sheet.append(list(columns))
        sheet.freeze_panes = "B2"
    sheet = workbook[name]
    header = [cell.value for cell in sheet[1]]
    for number, row in enumerate(rows, sheet.max_row + 1):
        for column, key in enumerate(header, 1):
            value = row.get(key)
            text = json.dumps(value, default=str) if isinstance(value, dict) else value
            cell = sheet.cell(number, column, text)
            if isinstance(value, int | float) and not key.endswith(("run", "images")):
                cell.number_format = "+0.00;-0.00;0.00" if key.endswith("difference") else "0.00"
    if new:  # later the widths are the user's
        for cells in sheet.columns:
            widest = max(len(cell.value) for cell in cells if isinstance(cell.value, str))
            sheet.column_dimensions[cells[0].column_letter].width = min(widest + 4, 40)
    sheet.auto_filter.ref = sheet.dimensions


def _cell(name, run):
    names = (name, *(f"{name} {measure}" for measure in ("published", "difference", "images")))
    if run is None or run["mIoU"] is None:
        return dict.fromkeys(names)
    score, published, images, whole = (run[key] for key in MEASURES)
    part = whole is not None and images < whole
    difference = None if part or None in (published, whole) else score - published
    return dict(zip(names, (score, published, difference, images if part else None)))


def _average(runs, parts):
    """The run that `parts` would be as one data set."""
    average = {}
    for key in MEASURES:
        values = [runs[part][key] for part in parts]
        average[key] = None if None in values else (sum if key.endswith("images") else fmean)(values)
    return average


def _starred(name, dataset):
    """`cls_voc20.txt` as `cls_*.txt` and `ade150.single.safetensors` as `*.single.safetensors`.

    Files that differ by the data set they are made for would otherwise make a row each.
    """
    name = (name or "").replace(dataset, "*")
    return re.sub(r"[^/]*?(\.[^/]+\.safetensors)$", r"*\1", name)


def _altered(run):
    """What a run altered of its protocol; its settings are text where they come from the workbook."""
    settings = run["settings"]
    return (json.loads(settings) if isinstance(settings, str) else settings or {}).get("altered")


def _instant(date):
    return datetime.fromisoformat(str(date)).astimezone()


def _plain(value):
    """Python numbers for numpy's and torch's, None for NaN."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    value = value.tolist() if hasattr(value, "tolist") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _texts(rows):
    """The table as strings, each number of images in the cell that it qualifies."""
    return [{name: _text(row, name) for name in row if not name.endswith(" images")} for row in rows]


def _text(row, name):
    value, images = row[name], row.get(f"{name} images")
    if isinstance(value, int | float):
        value = f"{value:+.2f}" if name.endswith(" difference") else f"{value:.2f}"
    return f"{value} ({images} img)" if images else str("" if value is None else value)


def _column(name, texts):
    """Equally long strings: header, rule, cells. A `published` follows the data set that it belongs to."""
    header = name.partition(" ")[2] or name
    width = max(map(len, (header, *texts)))
    pad = str.ljust if name in ROW else str.rjust
    return [pad(text, width) for text in (header, "-" * width, *texts)]
