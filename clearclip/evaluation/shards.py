"""Which share of the images is this process's, and what all processes have counted so far.

Processes never wait for one another's numbers: each writes the records of its own share into a file of its own, all in
one folder, and reads the files of the others. So ranks of one job, jobs of an array and runs that were stopped are the
same thing: what has a record is done.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clearclip.errors import UserError
from clearclip.evaluation.confusion import Confusions
from clearclip.evaluation.records import ImageRecord, Records, Run

# What launchers tell a process of itself: torchrun, Slurm, Open MPI.
RANKS = (
    ("RANK", "WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
)


@dataclass(frozen=True)
class Share:
    """One of `count` equal shares of the images, `index` from 0 on.

    >>> Share.parse("3/16")
    Share(index=2, count=16)
    """

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Share":
        """Read "3/16", the third of sixteen. Raises UserError for anything else."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise UserError(f"--shard {text!r} must be I/N, such as 3/16, with I from 1 to N")
        return cls(int(index) - 1, int(count))

    @classmethod
    def of_launcher(cls, launcher: str) -> "Share":
        """The share of this process among those that a launcher started; everything without one.

        Raises UserError where the launcher's variables are missing.
        """
        if launcher == "none":
            return cls()
        names = dict(zip(("pytorch", "slurm", "mpi"), RANKS))[launcher]
        try:
            index, count = (int(os.environ[name]) for name in names)
        except (KeyError, ValueError):
            raise UserError(
                f"launcher {launcher} sets {' and '.join(names)}, which are missing here; start with it, or with "
                "dist_test.sh"
            ) from None
        return cls(index, count)

    def within(self, other: "Share") -> "Share":
        """This share of another share: rank 1 of 2 of the third of 16 shards is the sixth of 32."""
        return Share(other.index * self.count + self.index, other.count * self.count)

    def take(self, items: Sequence) -> list:
        """Every `count`-th item, from `index` on."""
        return list(items[self.index :: self.count])

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"


class Shards:
    """The records of a folder: a file that this process writes, and those of others, which it reads.

    with Shards(Path("work_dirs/records"), Share()) as shards:
        ledger = shards.ledger(identity, classes, meta)
        missing = ledger.missing(samples)
    """

    def __init__(self, folder: Path, share: Share):
        self.folder = folder
        self.own = Records.open(folder / f"{share.index + 1}-of-{share.count}.sqlite")

    def __enter__(self) -> "Shards":
        return self

    def __exit__(self, *exception: object) -> None:
        self.own.close()

    def ledger(self, identity: Mapping, classes: Sequence[str], meta: Mapping) -> "Ledger":
        """The ledger of one run."""
        return Ledger(self, self.own.run(identity, classes, meta))

    def others(self) -> list[Path]:
        """The files of other processes; one that is being made is still empty."""
        paths = sorted(self.folder.glob("*.sqlite"))
        return [path for path in paths if path != self.own.path and path.stat().st_size]


class Forgotten(UserError):
    """What was counted a moment ago is gone: another process began its part anew."""


class Ledger:
    """All records of one run, whoever wrote them."""

    def __init__(self, shards: Shards, run: Run):
        self.shards, self.run = shards, run

    def add(self, records: Iterable[ImageRecord]) -> None:
        """Write records; they are on the disk when this returns."""
        self.run.add_many(records)

    def missing(self, samples: Sequence[str]) -> list[str]:
        """The samples that nobody has counted yet."""
        left = list(samples)
        for run in self._everywhere():
            if not left:
                break
            left = run.missing(left)
        return left

    def clear(self, samples: Sequence[str]) -> None:
        """Forget what was counted of these samples, in every file."""
        for run in self._everywhere(readonly=False):
            run.clear(samples)

    def areas(self, samples: Sequence[str]) -> np.ndarray:
        """int64 [N, 4, C] of the samples, in their order. Raises Forgotten where one is missing."""
        return self.confusions(samples).areas()

    def confusions(self, samples: Sequence[str]) -> Confusions:
        """The counts of the samples, in their order. Raises Forgotten where one is missing."""
        parts, left = [], list(samples)
        for run in self._everywhere():
            done = run.done()
            parts.append(run.confusions([sample for sample in left if sample in done]))
            left = [sample for sample in left if sample not in done]
        _check_there(left)
        return Confusions.join(parts, samples)

    def images(self, samples: Sequence[str]) -> list[ImageRecord]:
        """The records of the samples, in their order. Raises Forgotten where one is missing."""
        found = {image.sample: image for run in self._everywhere() for image in run.images()}
        _check_there([sample for sample in samples if sample not in found])
        return [found[sample] for sample in samples]

    def identity_of(self, key: str) -> Mapping | None:
        """What another run is, by its key, where a process has begun to count it."""
        for path in self.shards.others():
            with Records.open(path, readonly=True) as records:
                for run in records.runs():
                    if run.key == key:
                        return run.identity
        return None

    def _everywhere(self, readonly: bool = True) -> Iterator[Run]:
        """This run in the file of this process, and then in those of others, each open until the next."""
        yield self.run
        for path in self.shards.others():
            with Records.open(path, readonly) as records:
                yield from (run for run in records.runs() if run.key == self.run.key)


def _check_there(missing: Sequence[str]) -> None:
    if missing:
        raise Forgotten(f"{missing[0]} has no record; evaluate the run again to count what is missing")
