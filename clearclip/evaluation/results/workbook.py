"""The workbook `results.xlsx`: a view of many results, which remembers them, so that runs can be appended.

- `table`, what `tables.table` gives, is remade with each run. The best of a column is bold; a difference between two
  runs is grey where its interval holds 0. Of what the user adds to this sheet, column widths are kept.
- `runs` has a row for each run; rows are only added. A row that is removed leaves the table, too; columns of the
  user's are kept, and columns that are missing, in a workbook of an earlier version, are added.
- `per_class` has a row for each class and a column for each run, with the run's number and, on a part of a benchmark,
  its images: 400 runs on 171 classes are 171 rows and are read and written in a second, where a row for each class
  and run took half a minute. The sheets of earlier versions, which have such rows, are turned into this form. The best
  whole run of each class is bold, by a rule of the sheet, so that rows stay as they are when runs are added.
- `confusions` has the six pairs of classes that a run confuses most, the most pixels first.

What was published is in none of them beside a run on a part of its benchmark.

Sheets of the user's are kept as far as openpyxl reads them: cells, formats, formulas, notes and charts, but no shapes
and no macros. The new workbook is read before it takes the old one's place. Whatever becomes of it, the `result.json`
of each run holds everything, and `rebuild` makes a workbook from them.
"""

import contextlib
import gc
import json
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias
from xml.parsers import expat

from clearclip.errors import UserError, printable
from clearclip.evaluation.results.record import Result, instant, plain, read_result
from clearclip.evaluation.results.tables import ROW, Row, Run, is_partial, is_uncertain, table
from clearclip.paths import atomic_write, check_writable, locked

if TYPE_CHECKING:  # slow, and only needed where a workbook is opened
    from openpyxl import Workbook
    from openpyxl.cell import Cell
    from openpyxl.styles import Alignment, Font
    from openpyxl.worksheet.worksheet import Worksheet

StrPath: TypeAlias = str | os.PathLike[str]

TABLE, RUNS, PER_CLASS, CONFUSIONS = SHEETS = ("table", "runs", "per_class", "confusions")
LONG = ("per_class_IoU", "metrics", "names", "templates", "confused")  # that no cell holds
RUN_COLUMNS = (
    "run",
    *(key for key in Result.__annotations__ if key not in LONG),
)
NEEDED = ("run", "date", "dataset", "method", "mIoU")  # without these a sheet of runs is not ours
NUMBERS = ("run", "mIoU", "published", "interval", "images", "benchmark_images")
CLASS_COLUMNS = ("dataset", "class")
PAIR_COLUMNS = ("run", "dataset", "method", "truth", "taken for", "pixels", "% of the class")
OURS = 'AND(ISNUMBER(C2),ISERROR(SEARCH(" img)",C$1))'  # begins our rule for cells
PAIRS = 6  # of a run; result.json has more
PART = " img)"  # ends the title of a run on a part of its benchmark
CELL_LENGTH = 32_767  # characters, at most
WAIT = 600.0  # seconds, at most, for another process that writes the workbook


def append_results(records: Iterable[Result], path: StrPath, saved_at: StrPath | None = None) -> None:
    """Append runs to the workbook `path`, made if need be; other processes may append to it at the same time.

    Raises `UserError` where the workbook is open in another program, read-only, damaged, not ours, or the disk is
    full; then it is as it was before. `saved_at` tells that message's reader where the results are kept (default: in
    the result.json of each run).
    """
    with _explained(path, saved_at), locked(f"{os.path.realpath(path)}.lock", WAIT), _collector_paused():
        workbook = _load(path)
        _add(workbook, [plain(record) for record in records], path)
        _save(workbook, path)


def rebuild(results: Iterable[Result | StrPath], path: StrPath) -> None:
    """Make the workbook `path` anew from results, or from `result.json` files; sheets of the user's are kept.

    Runs come in the order of their dates, each once. Raises `UserError` as `append_results` and `read_result` do.
    """
    records = [plain(read_result(each) if isinstance(each, str | os.PathLike) else each) for each in results]
    unique = {json.dumps(record, sort_keys=True, default=str): record for record in records}
    with _explained(path), locked(f"{os.path.realpath(path)}.lock", WAIT), _collector_paused():
        workbook = _load(path)
        for name in {*SHEETS} & {*workbook.sheetnames}:
            del workbook[name]
        _add(workbook, sorted(unique.values(), key=lambda record: instant(record["date"])), path)
        _save(workbook, path)


def check_workbook(path: StrPath) -> None:
    """Raise the `UserError` that `append_results` would: better before a run than after it."""
    _check_place(path)
    if os.path.exists(path):
        with _opened(path) as file, _reading(path):
            _check_xml(file)
            _runs(_openpyxl().load_workbook(file, read_only=True), path)


# Opening and saving


def _openpyxl() -> Any:
    import openpyxl

    return openpyxl


@contextlib.contextmanager
def _explained(path: StrPath, saved_at: StrPath | None = None) -> Iterator[None]:
    """Say in one sentence why the workbook could not be written, and where the results are."""
    cause: Exception
    try:
        yield
    except UserError as error:
        reason, cause = str(error), error
    except Exception as error:  # openpyxl lets through whatever its writers raise
        reason, cause = f"{path} cannot be written ({error}): free it or give another path", error
    else:
        return
    raise UserError(f"{reason}; the results are safe in {saved_at or 'the result.json of each run'}") from cause


@contextlib.contextmanager
def _reading(path: StrPath) -> Iterator[None]:
    """Report whatever is raised while an existing workbook is read as damage to it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # openpyxl lets through whatever its parsers raise
        raise UserError(f"{path} is damaged ({error}): move it away and run again") from error


def _opened(path: StrPath) -> IO[bytes]:
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): free it or give another path") from None


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep Python's garbage collector from the cells: none is garbage, and looking through them takes half the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _check_place(path: StrPath) -> None:
    """Raise `UserError` where no workbook can be written at `path`, or another program has it open."""
    path = Path(path)
    if path.suffix.lower() != ".xlsx":
        raise UserError(f"{path} is no name for a workbook: let it end in .xlsx")
    check_writable(path)
    for place in (path, Path(os.path.realpath(path))):
        for mark in (f"~${place.name}", f".~lock.{place.name}#"):  # of Excel and LibreOffice, while they edit
            if os.path.exists(place.with_name(mark)):
                raise UserError(f"{path} is open in another program: close it (or remove {mark}) and run again")


def _load(path: StrPath) -> "Workbook":
    """The workbook at `path`, or a new one."""
    _check_place(path)
    if not os.path.exists(path):
        workbook = _openpyxl().Workbook()
        workbook.remove(workbook.active)
        return workbook
    with _opened(path) as file, _reading(path):
        workbook = _openpyxl().load_workbook(file)
    _check_ours(workbook, path)
    return workbook


def _save(workbook: "Workbook", path: StrPath) -> None:
    with atomic_write(path) as temporary:
        workbook.save(temporary)
        _check_saved(temporary, workbook)


def _check_saved(path: Path, workbook: "Workbook") -> None:
    """Read what was written: Excel refuses a workbook with one wrong character, and it would replace a sound one."""
    with path.open("rb") as file:
        _check_xml(file)
        read = _openpyxl().load_workbook(file, read_only=True)
        if read.sheetnames != workbook.sheetnames or len(list(read[RUNS].rows)) != workbook[RUNS].max_row:
            raise OSError("it does not read back as it was written")


def _check_xml(file: IO[bytes]) -> None:
    """Raise whatever zipfile or expat does where a part of the workbook is damaged."""
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if name.endswith((".xml", ".rels")):
                expat.ParserCreate().Parse(archive.read(name), True)


# Reading


def _check_ours(workbook: "Workbook", path: StrPath) -> None:
    header = next(workbook[RUNS].values, ()) if RUNS in workbook.sheetnames else ()
    missing = [name for name in NEEDED if name not in header]
    if missing:
        raise UserError(f"{path} has no sheet '{RUNS}' with {', '.join(missing)}: move it away and run again")


def _runs(workbook: "Workbook", path: StrPath) -> list[Run]:
    """The runs in the sheet `runs`, except those whose row was emptied."""
    _check_ours(workbook, path)
    with _reading(path):
        header, *lines = workbook[RUNS].values
        runs = [run for line in lines if (run := dict(zip(header, line))).get("run")]
        for run in runs:
            wrong = [name for name in NUMBERS if not isinstance(run.get(name), int | float | None)]
            if wrong:
                raise ValueError(f"{wrong[0]} of run {run['run']} is no number but {run[wrong[0]]!r}")
        table(runs)  # fails on a date or settings that cannot be read
        return runs


# Writing


def _add(workbook: "Workbook", records: Sequence[Run], path: StrPath) -> None:
    """Add runs to our sheets."""
    for name in (RUNS, PER_CLASS):
        if name not in workbook.sheetnames:
            workbook.create_sheet(name)
    old = _runs(workbook, path) if workbook[RUNS].max_row > 1 else []
    per_class = _matrix(workbook)
    last = max([0, *(int(run["run"]) for run in old), *_numbers(per_class)])
    new = [{**record, "run": number} for number, record in enumerate(records, last + 1)]
    _extend(workbook[RUNS], RUN_COLUMNS, [(run.get("metrics") or {}) | _unpublished(run) for run in new])
    for run in new:
        title = f"{run['run']} {run['method']} {run['backbone']}"
        title += f" ({run['images']}{PART}" if is_partial(run) else ""
        _add_column(per_class, title, {(run["dataset"], name): iou for name, iou in run["per_class_IoU"].items()})
    _freeze(workbook[RUNS], "B2")
    _freeze(per_class, "C2")
    _mark_best(per_class)
    if pairs := [pair for run in new for pair in _pairs(run)]:
        if CONFUSIONS not in workbook.sheetnames:
            workbook.create_sheet(CONFUSIONS)
        _extend(workbook[CONFUSIONS], PAIR_COLUMNS, pairs)
        _freeze(workbook[CONFUSIONS], "E2")
    _remake_table(workbook, table(old + new))
    workbook.active = workbook[TABLE]
    for sheet in workbook.worksheets:  # two selected sheets would be edited together
        sheet.sheet_view.tabSelected = sheet.title == TABLE


def _unpublished(run: Run) -> Run:
    """A run without what was published, where it is on a part of its benchmark."""
    return run | {"published": None, "published_source": None} if is_partial(run) else run


def _pairs(run: Run) -> Iterator[Row]:
    """The rows of a run in the sheet `confusions`."""
    for truth, prediction, pixels, percent in (run.get("confused") or ())[:PAIRS]:
        values = (run["run"], run["dataset"], run["method"], truth, prediction, pixels, percent)
        yield dict(zip(PAIR_COLUMNS, values))


def _mark_best(sheet: "Worksheet") -> None:
    """Bold for the best IoU of each row among the whole runs, where there are two: a rule that covers all cells."""
    from openpyxl.formatting.formatting import ConditionalFormattingList
    from openpyxl.formatting.rule import FormulaRule

    kept = ConditionalFormattingList()  # the user's own rules
    for area in sheet.conditional_formatting:
        for rule in area.rules:
            if not (rule.formula and rule.formula[0].startswith(OURS)):
                kept.add(str(area.sqref), rule)
    sheet.conditional_formatting = kept
    lines, last = sheet.max_row, len(sheet[1])
    if lines < 2 or last < 4:
        return
    titles, row = f"$C$1:${_letter(last)}$1", f"$C2:${_letter(last)}2"
    whole = f'ISERROR(SEARCH("{PART}",{titles}))'
    best = f"{OURS},COUNT({row})>1,C2>0,C2>=SUMPRODUCT(MAX({whole}*{row})))"
    sheet.conditional_formatting.add(f"C2:{_letter(last)}{lines}", FormulaRule([best], font=_bold()))


def _remake_table(workbook: "Workbook", rows: list[Row]) -> None:
    place = 0
    widths: dict[str, float] = {}
    if TABLE in workbook.sheetnames:
        old = workbook[TABLE]
        place = workbook.index(old)
        widths = {cell.value: old.column_dimensions[cell.column_letter].width for cell in old[1]}
        del workbook[TABLE]
    sheet = workbook.create_sheet(TABLE, place)
    columns = list(rows[0]) if rows else ROW
    _extend(sheet, columns, rows)
    _freeze(sheet, "B2")
    for column, name in enumerate(columns, 1):
        cells = [sheet.cell(line, column) for line in range(2, len(rows) + 2)]
        sheet.column_dimensions[_letter(column)].width = widths.get(name) or _fitting([name, *_texts(cells)])
        _emphasise(cells, rows, name)


def _emphasise(cells: "list[Cell]", rows: list[Row], name: str) -> None:
    """Bold for the best of a data set's runs, on the most images; grey for a difference that may be none."""
    from openpyxl.styles import Font

    for cell, row in zip(cells, rows):
        if is_uncertain(row, name):
            cell.font = Font(color="00808080")
    if name in ROW or " " in name:
        return
    ranked = [(cell, (_images(row, name), row[name])) for cell, row in zip(cells, rows) if row[name] is not None]
    most, best = max(rank for _, rank in ranked)  # the table has no empty columns
    if sum(images == most for _, (images, _) in ranked) > 1:
        for cell, rank in ranked:
            if rank == (most, best):
                cell.font = Font(bold=True)


def _images(row: Row, name: str) -> float:
    """The number of images of a data set's run; infinite where it has all."""
    return row.get(f"{name} images") or float("inf")


def _extend(sheet: "Worksheet", columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows` below those of `sheet`, by the names in its header, which gains those it lacks."""
    header = _header(sheet)
    extra = [name for row in rows for name, value in row.items() if isinstance(value, int | float)]
    new = [name for name in dict.fromkeys([*columns, *extra]) if name not in header]
    for column, name in enumerate(new, len(sheet[1]) + 1 if header else 1):
        header[name] = column
        _write(sheet, 1, column, name).font = _bold()
        sheet.column_dimensions[_letter(column)].width = _fitting([name, *(str(row.get(name, "")) for row in rows)])
    for line, row in enumerate(rows, sheet.max_row + 1):
        for name, column in header.items():
            if row.get(name) is not None:
                _write(sheet, line, column, row[name]).number_format = _format(name, row[name])


def _add_column(sheet: "Worksheet", title: str, ious: Mapping[tuple[str, str], float | None]) -> None:
    """Write the IoU of each (data set, class) below `title`; classes that are not there yet are added below."""
    header = _header(sheet)
    if not header:
        _extend(sheet, CLASS_COLUMNS, [])
        header = _header(sheet)
    column, last = len(sheet[1]) + 1, sheet.max_row
    names = sheet.iter_rows(min_row=2, max_row=last, max_col=2, values_only=True) if last > 1 else ()
    lines = {key: line for line, key in enumerate(names, 2)}
    head = _write(sheet, 1, column, title)
    head.font, head.alignment = _bold(), _wrapping()
    sheet.column_dimensions[_letter(column)].width = 12
    for (dataset, name), iou in ious.items():
        key = _cell_text(dataset), _cell_text(name)
        if key not in lines:
            last = lines[key] = last + 1
            for place, text in enumerate(key, 1):
                _write(sheet, last, place, text)
        if iou is not None:
            _write(sheet, lines[key], column, iou).number_format = "0.00"


def _matrix(workbook: "Workbook") -> "Worksheet":
    """The sheet `per_class`; one of an earlier version, with a row for each class and run, becomes a matrix."""
    sheet = workbook[PER_CLASS]
    header = _header(sheet)
    if not {"run", "IoU"} <= header.keys():
        return sheet
    place = workbook.index(sheet)
    runs: dict[str, dict[tuple[str, str], float | None]] = {}
    for values in sheet.iter_rows(min_row=2, values_only=True):
        row = {name: values[column - 1] for name, column in header.items()}
        title = f"{row['run']} {row['method']} {row['backbone']}"
        runs.setdefault(title, {})[row["dataset"], row["class"]] = row["IoU"]
    del workbook[PER_CLASS]
    sheet = workbook.create_sheet(PER_CLASS, place)
    for title, ious in runs.items():
        _add_column(sheet, title, ious)
    return sheet


def _numbers(per_class: "Worksheet") -> list[int]:
    """The numbers of runs in the header of `per_class`; a run whose row was removed keeps its own."""
    return [int(match[0]) for name in _header(per_class) if (match := re.match(r"\d+ ", str(name)))]


def _header(sheet: "Worksheet") -> dict[str, int]:
    return {cell.value: cell.column for cell in sheet[1] if cell.value is not None}


def _write(sheet: "Worksheet", line: int, column: int, value: Any) -> "Cell":
    """Write a value into a cell; text stays text, also `=grass` and `#N/A`, which would be a formula and an error."""
    value = _brief(value) if isinstance(value, dict) else value
    if not isinstance(value, str):
        return sheet.cell(line, column, value)
    cell = sheet.cell(line, column, _cell_text(value))
    cell.data_type = "s"
    cell.quotePrefix = value.startswith(("=", "+", "-", "@"))  # else to edit the cell would make it a formula
    return cell


def _cell_text(text: str) -> str:
    return printable(text)[:CELL_LENGTH]


def _brief(mapping: Mapping[str, Any]) -> str:
    """JSON that fits into a cell; values too long for one, say lists of names, are left to result.json."""
    brief = {key: item if len(str(item)) < 1000 else "… in result.json" for key, item in mapping.items()}
    while len(text := json.dumps(brief, default=str)) > CELL_LENGTH:
        brief = dict(list(brief.items())[: len(brief) // 2])
    return text


def _format(name: str, value: Any) -> str:
    if isinstance(value, str | dict) or name.endswith(("run", "images")):
        return "General"
    return "+0.00;-0.00;0.00" if name.endswith(" difference") or " vs " in name else "0.00"


def _freeze(sheet: "Worksheet", cell: str) -> None:
    """Keep the header in sight; its filter covers what was added."""
    sheet.freeze_panes = sheet.freeze_panes or cell
    sheet.auto_filter.ref = sheet.dimensions


def _texts(cells: "Iterable[Cell]") -> list[str]:
    return [f"{cell.value:.2f}" if isinstance(cell.value, float) else str(cell.value or "") for cell in cells]


def _fitting(texts: Iterable[str]) -> int:
    return min(max(map(len, texts)) + 4, 40)


def _letter(column: int) -> str:
    from openpyxl.utils import get_column_letter

    return get_column_letter(column)


def _bold() -> "Font":
    from openpyxl.styles import Font

    return Font(bold=True)


def _wrapping() -> "Alignment":
    from openpyxl.styles import Alignment

    return Alignment(wrap_text=True, vertical="top")
