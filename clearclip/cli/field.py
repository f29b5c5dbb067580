"""What has been published, from the configs alone: `eval_all.py --published`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import fmean

from clearclip.config import benchmarks, config_folder, find_config, protocols, read_config
from clearclip.errors import UserError
from clearclip.evaluation.results.tables import AVERAGES, BENCHMARKS, as_markdown, as_text
from clearclip.registry import split

OTHERS = "published.py"  # beside the configs: what none of them stands for
Row = dict[str, str]
Key = tuple[str, str, str, str]  # method, backbone, protocol, source


def published(datasets: Sequence[str] = ()) -> tuple[list[Row], list[str]]:
    """The published mIoU of each data set as text, a row for each method, backbone, protocol and source; the sources.

    Options of methods, which differ by data set, are left out. An average is as published, or else that of a row with
    all its sets. `datasets` chooses columns, and the rows that have one of them. Raises UserError where none has.
    """
    rows: dict[Key, dict[str, float]] = {}
    for key, name, number in _numbers():
        rows.setdefault(key, {})[name] = number
    for row in rows.values():
        complete = {name: parts for name, parts in AVERAGES.items() if row.keys() >= {*parts}}
        row |= {name: round(fmean(row[part] for part in parts), 1) for name, parts in complete.items()} | row
    known = dict.fromkeys([*BENCHMARKS, *(name for row in rows.values() for name in row if name not in AVERAGES)])
    names = [name for name in known if name in datasets] if datasets else [*known, *AVERAGES]
    rows = {key: row for key, row in rows.items() if row.keys() & {*names}}
    if not rows:
        raise UserError(f"nothing published on {', '.join(datasets)} is known here; use some of {', '.join(known)}")
    sources = list(dict.fromkeys(source for *_, source in rows))
    table = []
    for (method, backbone, protocol, source), row in rows.items():
        cells = {name: str(row.get(name, "")) for name in names}
        place = f"[{sources.index(source) + 1}]"
        table.append({"method": method, "backbone": backbone, "protocol": protocol, **cells, "source": place})
    return table, sources


def _numbers() -> Iterator[tuple[Key, str, float]]:
    """Each published number and the data set that it is of."""
    for folder in protocols():
        for name in benchmarks(folder):
            benchmark = read_config(find_config(name, folder)).benchmark
            for backbone, methods in benchmark.get("published", {}).items():
                for method, number in methods.items():
                    plain = "+".join(part.partition(":")[0] for part in split(method, "+"))
                    key = (plain, backbone, benchmark.protocol, benchmark.source[method])
                    yield key, benchmark.name, number
    for row in read_config(config_folder() / OTHERS).rows:
        for name, number in row.mIoU.items():
            yield (row.method, row.backbone, row.protocol, row.source), name, number


def show(datasets: Sequence[str], write: Callable[[str], None] | None = None) -> None:
    """Print a table for each protocol, and the sources; hand them to `write` as Markdown, too."""
    rows, sources = published(datasets)
    tables = [_filled(row for row in rows if row["protocol"] == name) for name in {row["protocol"]: 0 for row in rows}]
    places = [f"[{number}] {source}" for number, source in enumerate(sources, 1)]
    print("\n\n".join([*(as_text([*table]) for table in tables), "\n".join(places)]))
    if write:
        listed = "".join(f"- {place}\n" for place in places)
        write("\n\n".join([*(as_markdown([*table]) for table in tables), listed]))


def _filled(rows: Iterable[Row]) -> list[Row]:
    """Rows without the columns that are empty in all of them."""
    rows = list(rows)
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    return [{name: row[name] for name in names} for row in rows]
