"""What an evaluation has counted, image by image: an append-only store in one SQLite file.

A *run* is all that decides a label: weights, texts, class names, method, protocol. Of each run and image the store
keeps the non-zero counts of the confusion matrix. Resuming, shards, scores with intervals, the worst images and the
confused classes are all views of these counts:

    with Records.open("work_dirs/records.sqlite") as records:
        run = records.run({"method": "ClearCLIP", "weights": "sha256:…"}, classes=["cat", "sofa"])
        for sample in run.missing(samples):
            truth, labels = ...  # [H, W]
            run.add(sample, Confusion.count(truth, labels, classes=2), size=truth.shape)
        areas = run.areas(samples)  # int64 [N, 4, C], for clearclip.evaluation.statistics

A batch is one transaction, and is on the disk when `add_many` returns: a killed process or a power cut loses what was
not yet added, and nothing else. That takes SQLite's rollback journal with `synchronous=EXTRA`, a millisecond a batch
on an idle SSD and tens of them on a busy disk; write-ahead logging would be quicker, but needs shared memory, which
network file systems lack. Several processes may write one file; where file locks cannot be trusted, give each its own
and `merge` them.
"""

import contextlib
import hashlib
import json
import math
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from clearclip.errors import UserError
from clearclip.evaluation.confusion import Confusion, Confusions, decode, encode, impossible

FORMAT = 1  # of the tables below; SQLite keeps it as user_version
APPLICATION = int.from_bytes(b"CCLP", "big")  # marks the file as ours: SQLite's application_id
BUSY_SECONDS = 60.0  # how long to wait for another process's transaction

Execute: TypeAlias = Callable[..., sqlite3.Cursor]  # as the method of a connection

SCHEMA = (
    """CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,  -- SHA-256 of identity
        identity TEXT NOT NULL,    -- canonical JSON
        meta TEXT NOT NULL,        -- JSON
        created TEXT NOT NULL      -- ISO 8601, UTC
    )""",
    """CREATE TABLE images (
        run INTEGER NOT NULL REFERENCES runs,
        sample TEXT NOT NULL,
        confusion BLOB NOT NULL,   -- see encode in confusion.py
        height INTEGER NOT NULL,
        width INTEGER NOT NULL,
        seconds REAL,
        extra TEXT,                -- JSON
        checksum INTEGER NOT NULL, -- CRC-32 of all the above but run
        UNIQUE (run, sample)
    )""",
)


# --- identity ---------------------------------------------------------------------------------------------------------


def canonical(value: object) -> str:
    """JSON that is the same for the same content: sorted keys, no spaces, tuples as lists, 50.0 as 50.

    Raises TypeError, naming the place, for what JSON cannot hold, such as NaN and infinity, and UserError for text
    that is not Unicode, as file names may be.
    """
    return json.dumps(_plain(value, "identity"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def identity_key(value: object) -> str:
    """SHA-256 of `canonical(value)`, in hexadecimal. It can also stand for a long list within an identity."""
    return _sha256(canonical(value))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: object, place: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return _unicode(value)
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() else value
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {_unicode(name): _plain(item, f"{place}.{name}") for name, item in value.items()}
    raise TypeError(f"{place} is {value!r}, which JSON cannot hold")


def _unicode(text: str) -> str:
    """The same text. Raises UserError for the name of a file that is not in the system's encoding."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"the name {text!a} is not valid UTF-8: rename the file") from None
    return text


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()  # in a difference: that identity has no such entry


def difference(one: Mapping, other: Mapping) -> dict[str, tuple]:
    """Where two identities differ: a dotted path to the two values, `ABSENT` where one has none.

    >>> difference({"text": {"file": "a"}, "names": ["cat", "ship"]}, {"text": {}, "names": ["cat", "boat"]})
    {'names[1]': ('ship', 'boat'), 'text.file': ('a', absent)}
    """
    return dict(_differences(one, other, ""))


def _differences(one: object, other: object, place: str) -> Iterator[tuple[str, tuple]]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in sorted(one.keys() | other.keys()):
            yield from _differences(one.get(name, ABSENT), other.get(name, ABSENT), f"{place}.{name}".lstrip("."))
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other)):
            yield from _differences(*pair, f"{place}[{index}]")
    elif one is ABSENT or other is ABSENT or canonical(one) != canonical(other):
        yield place, (one, other)


# --- runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageRecord:
    """What is kept of one image of a run.

    Attributes:
        sample: its id, unique in a run.
        confusion: its counts.
        size: height and width of its label map.
        seconds: the time it took; None where that is not known.
        extra: anything that JSON can hold.
    """

    sample: str
    confusion: Confusion
    size: tuple[int, int]
    seconds: float | None = None
    extra: Mapping | None = None


class _Row(NamedTuple):
    """A line of the table `images`, without its run."""

    sample: str
    confusion: bytes
    height: int
    width: int
    seconds: float | None
    extra: str | None
    checksum: int

    @classmethod
    def of(cls, image: ImageRecord) -> "_Row":
        height, width = map(int, image.size)
        seconds = None if image.seconds is None else float(image.seconds) + 0.0  # SQLite has no -0.0
        if seconds is not None and not 0 <= seconds < math.inf:
            raise ValueError(f"{image.sample} took {seconds} seconds")
        extra = None if image.extra is None else _json(image.extra)
        values = (_unicode(str(image.sample)), encode(image.confusion), height, width, seconds, extra)
        return cls(*values, _checksum(*values))

    @property
    def counted(self) -> tuple:
        """What must be equal in two records of the same run and image."""
        return self.confusion, self.height, self.width

    @property
    def incidental(self) -> tuple:
        """What may differ: of two such records a merge keeps the lesser, whichever comes first."""
        return self.seconds is None, self.seconds or 0.0, self.extra or ""

    def sound(self) -> bool:
        try:
            return self.checksum == _checksum(*self[:-1])
        except TypeError:  # a damaged column may hold anything
            return False


COLUMNS = ", ".join(_Row._fields)


def _checksum(sample: str, confusion: bytes, height: int, width: int, seconds: float | None, extra: str | None) -> int:
    return zlib.crc32(confusion, zlib.crc32(json.dumps([sample, height, width, seconds, extra]).encode()))


def _json(value: object) -> str:
    return json.dumps(
        value, sort_keys=True, default=lambda odd: odd.item() if isinstance(odd, np.generic) else str(odd)
    )


@dataclass(frozen=True)
class Run:
    """One run of a store: `Records.run` makes it, `Records.runs` finds it. Equal keys are the same run in any file.

    Attributes:
        records: the store.
        key: SHA-256 of the identity.
        identity: all that decides a label, class names included.
        meta: what decides no label but is good to know, as the first process gave it.
        created: ISO 8601, UTC.
    """

    records: "Records" = field(repr=False, compare=False)
    id: int = field(repr=False, compare=False)
    key: str
    identity: dict = field(repr=False, compare=False)
    meta: dict = field(repr=False, compare=False)
    created: str = field(compare=False)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.identity["classes"])

    def done(self) -> set[str]:
        """The sample ids that have a record; damaged ones do not count."""
        return {row.sample for row in self._rows() if row.sound()}

    def missing(self, samples: Iterable[str]) -> list[str]:
        """Those of `samples` that have no record yet, in their order."""
        done = self.done()
        return [sample for sample in samples if sample not in done]

    def add(
        self,
        sample: str,
        confusion: Confusion,
        size: tuple[int, int],
        seconds: float | None = None,
        extra: Mapping | None = None,
    ) -> None:
        """`add_many` of one image."""
        self.add_many([ImageRecord(sample, confusion, size, seconds, extra)])

    def add_many(self, images: Iterable[ImageRecord]) -> None:
        """Write a batch: all of it or, where an error is raised, nothing of it.

        A record whose counts are there already is left out, so that a batch may be tried again; a damaged one is
        replaced. Raises UserError where other counts are there: a run never overwrites its own.
        """
        rows = [_Row.of(self._checked(image)) for image in images]
        with self.records._transaction():
            for row in rows:
                self._add(row)

    def clear(self, samples: Iterable[str] | None = None) -> int:
        """Remove the records of `samples`, or all of this run, to count these images afresh. Returns how many."""
        with self.records._transaction() as execute:
            if samples is None:
                return execute("DELETE FROM images WHERE run = ?", (self.id,)).rowcount
            query = "DELETE FROM images WHERE run = ? AND sample = ?"
            return sum(execute(query, (self.id, sample)).rowcount for sample in samples)

    def images(self) -> Iterator[ImageRecord]:
        """All records, by sample id."""
        for row in self._sound(self._rows()):
            _, cells, counts = decode([row.confusion])
            confusion = Confusion(len(self.classes), cells, counts)
            extra = None if row.extra is None else json.loads(row.extra)
            yield ImageRecord(row.sample, confusion, (row.height, row.width), row.seconds, extra)

    def confusions(self, samples: Iterable[str] | None = None) -> Confusions:
        """The counts of `samples`, in their order; of all images, by sample id, where none are given.

        Raises UserError for a sample without a record, or with a damaged one.
        """
        rows = self._rows()
        rows = self._sound(rows if samples is None else self._chosen(rows, list(samples)))
        image, cells, counts = decode([row.confusion for row in rows])
        truth, prediction = np.divmod(cells, len(self.classes) + 1)
        return Confusions([row.sample for row in rows], len(self.classes), image, truth, prediction, counts)

    def areas(self, samples: Iterable[str] | None = None) -> np.ndarray:
        """`confusions(samples).areas()`: int64 [N, 4, C]."""
        return self.confusions(samples).areas()

    def total(self, samples: Iterable[str] | None = None) -> np.ndarray:
        """`confusions(samples).total()`: int64 [C, C + 1]."""
        return self.confusions(samples).total()

    def _checked(self, image: ImageRecord) -> ImageRecord:
        if image.confusion.classes != len(self.classes):
            raise ValueError(f"{image.sample} has {image.confusion.classes} classes, its run {len(self.classes)}")
        return image

    def _chosen(self, rows: list[_Row], samples: list[str]) -> list[_Row]:
        by_sample = {row.sample: row for row in rows}
        if missing := [sample for sample in samples if sample not in by_sample]:
            raise UserError(
                f"{self.records.path} lacks {len(missing)} of the {len(samples)} images of run {self.key[:12]}, "
                f"such as {missing[0]}: run the evaluation again, it goes on where it stopped"
            )
        return [by_sample[sample] for sample in samples]

    def _rows(self) -> list[_Row]:
        query = f"SELECT {COLUMNS} FROM images WHERE run = ? ORDER BY sample"
        return [_Row(*row) for row in self.records._select(query, self.id)]

    def _sound(self, rows: list[_Row]) -> list[_Row]:
        """The same rows. Raises UserError where one is damaged."""
        for row in rows:
            if not row.sound():
                raise UserError(
                    f"{self.records.path}: the record of {row.sample} is damaged: run the evaluation again, it counts "
                    "this image afresh"
                )
        return rows

    def _add(self, row: _Row) -> None:
        present = self._insert(row)
        if present and not present.sound():
            self._replace(row)
        elif present and present.counted != row.counted:
            raise _conflict(self.records.path, "this process", self.key, row.sample)

    def _insert(self, row: _Row) -> _Row | None:
        """Add one image, within a transaction. Returns the record that is there already, if any."""
        execute = self.records._connection.execute
        values = ", ".join("?" * len(row))
        insert = f"INSERT INTO images (run, {COLUMNS}) VALUES (?, {values}) ON CONFLICT DO NOTHING"
        if execute(insert, (self.id, *row)).rowcount:
            return None
        query = f"SELECT {COLUMNS} FROM images WHERE run = ? AND sample = ?"
        return _Row(*execute(query, (self.id, row.sample)).fetchone())

    def _replace(self, row: _Row) -> None:
        execute = self.records._connection.execute
        execute("DELETE FROM images WHERE run = ? AND sample = ?", (self.id, row.sample))
        self._insert(row)


def _conflict(one: str | Path, other: str | Path, key: str, sample: str) -> UserError:
    return UserError(
        f"{one} and {other} count {sample} differently in the same run {key[:12]}: start it over with --fresh, as "
        "something that decides labels has changed and is not in the run's identity, or the device is not deterministic"
    )


# --- the store --------------------------------------------------------------------------------------------------------


class Records:
    """A store of runs in one SQLite file. A context manager; belongs to the thread and process that opened it."""

    def __init__(self, path: Path, connection: sqlite3.Connection):
        self.path, self._connection = path, connection

    @classmethod
    def open(cls, path: str | os.PathLike, readonly: bool = False) -> "Records":
        """Open the store at `path`. Unless it is `readonly`, make it and its folder where there is none.

        Raises UserError, naming file and remedy, for a file that is missing, damaged, another program's, of a newer
        version, or may not be read or written.
        """
        path = Path(path)
        if not readonly:
            _check_place(path)
        elif not path.is_file():
            raise UserError(f"there are no records at {path}: run an evaluation first, or give another path")
        records = cls(path, _connect(path, readonly))
        try:
            records._prepare(readonly)
        except BaseException:
            records.close()
            raise
        return records

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def run(self, identity: Mapping, classes: Sequence[str], meta: Mapping | None = None) -> Run:
        """The run of this identity and these class names, which become part of it; a new one where there is none.

        `identity` holds whatever else decides a label, and nothing more. The label of an image does not depend on
        the other images, so leave their list out: a run of 20 images then goes on to 5,000.
        """
        text = canonical({**identity, "classes": list(classes)})
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._transaction():
            return self._run(_sha256(text), text, _json(meta or {}), created)

    def runs(self) -> list[Run]:
        """All runs, the oldest first."""
        rows = self._select("SELECT id, key, identity, meta, created FROM runs ORDER BY created, key")
        return [self._loaded(*row) for row in rows]

    def verify(self) -> list[str]:
        """A sentence for each damaged page, wrong checksum and impossible count. Reads everything."""
        faults = [line for (line,) in self._select("PRAGMA integrity_check") if line != "ok"]
        for run in self.runs():
            found = ((row.sample, _fault(row, len(run.classes))) for row in run._rows())
            faults += [f"run {run.key[:12]}, {sample}: {fault}" for sample, fault in found if fault]
        return [f"{self.path}: {fault}" for fault in faults]

    def _prepare(self, readonly: bool) -> None:
        execute = self._connection.execute
        with _explained(self.path):
            execute("PRAGMA synchronous = EXTRA")  # FULL, and the folder once the journal is deleted
            execute("PRAGMA fullfsync = ON")  # macOS leaves the rest in the drive's cache
            execute(f"PRAGMA query_only = {readonly}")
            if self._is_new() and not readonly:
                self._create()
            self._check_header()
            if not readonly:
                execute("PRAGMA journal_mode = DELETE")

    def _header(self) -> tuple[int, int]:
        [(application,)] = self._connection.execute("PRAGMA application_id")
        [(version,)] = self._connection.execute("PRAGMA user_version")
        return application, version

    def _is_new(self) -> bool:
        [(tables,)] = self._connection.execute("SELECT count(*) FROM sqlite_master")
        return self._header() == (0, 0) and not tables

    def _create(self) -> None:
        with self._transaction() as execute:
            if not self._is_new():  # any more: another process came first
                return
            for statement in SCHEMA:
                execute(statement)
            execute(f"PRAGMA application_id = {APPLICATION}")
            execute(f"PRAGMA user_version = {FORMAT}")

    def _check_header(self) -> None:
        application, version = self._header()
        if application == APPLICATION and version > FORMAT:
            raise UserError(
                f"{self.path} was written by a newer version (format {version}, this one reads {FORMAT}): "
                "upgrade clearclip, or give another path"
            )
        tables = self._connection.execute(  # triggers and views would be programs of whoever made the file
            "SELECT sql FROM sqlite_master WHERE type IN ('table', 'view', 'trigger') ORDER BY rowid"
        ).fetchall()
        if (application, version, tables) != (APPLICATION, FORMAT, [(statement,) for statement in SCHEMA]):
            raise UserError(f"{self.path} holds no records of evaluations: give another path, or move it away")

    def _select(self, query: str, *parameters: str | int) -> list[tuple]:
        with _explained(self.path):
            return self._connection.execute(query, parameters).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Execute]:
        """Write all that is executed inside, or nothing. Yields the connection's `execute`."""
        with _explained(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection.execute
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk has rolled back by itself
                    self._connection.execute("ROLLBACK")
                raise

    def _run(self, key: str, identity: str, meta: str, created: str) -> Run:
        """The run of `key`, within a transaction. Of two that describe it the older stays."""
        values = dict(key=key, identity=identity, meta=meta, created=created)
        execute = self._connection.execute
        execute(
            "INSERT INTO runs (key, identity, meta, created) VALUES (:key, :identity, :meta, :created) "
            "ON CONFLICT (key) DO UPDATE SET meta = :meta, created = :created "
            "WHERE (:created, :meta) < (runs.created, runs.meta)",
            values,
        )
        query = "SELECT id, key, identity, meta, created FROM runs WHERE key = :key"
        return self._loaded(*execute(query, values).fetchone())

    def _loaded(self, id: int, key: str, identity: str, meta: str, created: str) -> Run:
        try:
            if _sha256(str(identity)) != key:
                raise ValueError
            run = Run(self, id, key, json.loads(identity), json.loads(meta), created)
            if not (isinstance(run.identity, dict) and isinstance(run.meta, dict) and isinstance(created, str)):
                raise ValueError
            if not all(isinstance(name, str) for name in [*run.identity["classes"]]):
                raise ValueError
            return run
        except (TypeError, ValueError, KeyError, RecursionError):
            raise UserError(
                f"{self.path}: the description of run {id} is damaged: move the file away and run again"
            ) from None


def merge(target: str | os.PathLike, sources: Iterable[str | os.PathLike]) -> int:
    """Add the records of all sources to the target: all of them, or none. Returns how many images are new.

    The order of the sources, and merging one twice, change nothing. Raises UserError naming both files where they
    count an image of the same run differently.
    """
    origin: dict[tuple[str, str], Path] = {}  # (run key, sample) -> the source that brought it
    with Records.open(target) as into, into._transaction():
        for source in map(Path, sources):
            with Records.open(source, readonly=True) as records:
                if not source.samefile(target):
                    _merge(into, records, origin)
    return len(origin)


def _merge(into: Records, records: Records, origin: dict[tuple[str, str], Path]) -> None:
    for run in records.runs():
        copy = into._run(run.key, canonical(run.identity), _json(run.meta), run.created)
        for row in run._sound(run._rows()):
            present = copy._insert(row)
            if present is None:
                origin[run.key, row.sample] = records.path
            elif present.counted != row.counted:
                first = origin.get((run.key, row.sample), into.path)
                raise _conflict(first, records.path, run.key, row.sample)
            elif row.incidental < present.incidental:
                copy._replace(row)


def _fault(row: _Row, classes: int) -> str | None:
    """What is wrong with a record; None where nothing is."""
    if not row.sound():
        return "the record is damaged"
    try:
        _, cells, counts = decode([row.confusion])
    except ValueError as error:
        return str(error)
    if problem := impossible(classes, cells, counts):
        return problem
    if min(row.height, row.width) <= 0 or counts.sum() > row.height * row.width:
        return f"{counts.sum()} pixels are counted in an image of {row.height}x{row.width}"
    if row.seconds is not None and not 0 <= row.seconds < math.inf:
        return f"it took {row.seconds} seconds"
    return None


# --- the file ---------------------------------------------------------------------------------------------------------


def _connect(path: Path, readonly: bool) -> sqlite3.Connection:
    mode = "rw" if readonly else "rwc"  # reading must roll back what a killed writer left, where it may
    with _explained(path):
        uri = f"{path.absolute().as_uri()}?mode={mode}"
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    connection.text_factory = lambda octets: octets.decode(errors="replace")  # the checksum then tells
    return connection


def _check_place(path: Path) -> None:
    """Make the folder of `path`. Raises UserError where the file cannot be made or written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): give another path") from error
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the path of a file")
    unwritable = [place for place in (path.parent, path) if place.exists() and not os.access(place, os.W_OK)]
    if unwritable:  # the folder as well: the journal lies beside the file
        raise UserError(f"{path} cannot be written: give another path, or permission to write {unwritable[0]}")


BUSY = f"another process has held it for {BUSY_SECONDS:.0f} seconds; wait for it, or give another path"
PERMISSION = "give another path, or permission to write the file and its folder"
DAMAGE = "move it away and run again; `sqlite3 FILE .recover` may save what it held"
REMEDIES = {  # by primary result code, https://sqlite.org/rescode.html
    sqlite3.SQLITE_BUSY: BUSY,
    sqlite3.SQLITE_LOCKED: BUSY,
    sqlite3.SQLITE_PROTOCOL: BUSY,
    sqlite3.SQLITE_PERM: PERMISSION,
    sqlite3.SQLITE_READONLY: PERMISSION,
    sqlite3.SQLITE_CANTOPEN: PERMISSION,
    sqlite3.SQLITE_FULL: "make room on the disk and run again, nothing already written is lost",
    sqlite3.SQLITE_IOERR: "check disk, quota and file locks and run again, nothing already written is lost",
    sqlite3.SQLITE_NOTADB: "it holds no records of evaluations; give another path, or move it away",
    sqlite3.SQLITE_CORRUPT: DAMAGE,
    sqlite3.SQLITE_ERROR: DAMAGE,  # also of a header that makes no sense
}


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what SQLite says of a file into a UserError. Programming errors stay what they are."""
    try:
        yield
    except UnicodeDecodeError as error:  # by sqlite3, of a message that quotes the file
        raise UserError(f"{path} is damaged: {DAMAGE}") from error
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        remedy = None if code is None else REMEDIES.get(code & 0xFF)  # the other bits say more
        if remedy is None:
            raise
        raise UserError(f"{path} cannot be used ({' '.join(str(error).split())}): {remedy}") from error
