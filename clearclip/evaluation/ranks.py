"""Processes that a launcher started together: each says in a file of its own that it lives, and how it ended.

They may be on several machines and share nothing but the folder of records, whatever launcher started them. Rank 0,
which waits for the images of the others, so learns within seconds that one of them is dead, and why. A process whose
launcher has died ends itself.
"""

import contextlib
import json
import os
import signal
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clearclip.errors import UserError, one_line
from clearclip.evaluation.shards import Share

BEAT = 1.0  # seconds from one sign of life to the next
SILENT = 20.0  # seconds without any after which a process is dead; those that one which is done waits to be heard
LATE = 600.0  # seconds that a process may take to start
GRACE = 15.0  # seconds from SIGTERM to the second one, which nothing handles
DONE = "done"  # how a process ends well
KEPT = "what was counted is kept; the same command goes on from there"


@dataclass
class Heard:
    """The last sign of life of another process.

    Attributes:
        text: as it was read; what an earlier run left is no sign of life until it changes.
        at: when it changed, by our clock.
        alive: whether it ever did.
        keys: by the place of a run, as what it is recorded there; they outlast the process.
    """

    text: str
    at: float
    alive: bool = False
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def state(self) -> dict[str, Any]:
        return json.loads(self.text) if self.text else {}


class Ranks:
    """This process, `rank`, among those that a launcher started for one share of the images.

    with Ranks(Path("work_dirs/records"), Share(), Share(1, 4), os.getppid()) as ranks:
        ranks.fail(0, "image a.jpg is not a picture")  # rank 0 ends this run, and says so
    """

    def __init__(self, folder: Path, whole: Share, rank: Share, parent: int):
        shares = (Share(index, rank.count).within(whole) for index in range(rank.count))
        self.paths = [folder / f"{share.index + 1}-of-{share.count}.alive" for share in shares]
        self.rank, self.parent = rank, parent
        self.token = uuid.uuid4().hex
        self._state: dict[str, Any] = {"token": self.token, "beat": 0, "keys": {}, "failed": {}, "ended": None}
        self._heard: dict[int, Heard] = {}
        self._lock, self._stop = threading.RLock(), threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._stopped_at: float | None = None

    def __enter__(self) -> "Ranks":
        self.paths[0].parent.mkdir(parents=True, exist_ok=True)
        others = {0} if self.rank.index else range(1, self.rank.count)  # rank 0 hears all, the others hear it
        self._heard = {index: Heard(self._read(index) or "", time.monotonic()) for index in others}
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None and self._state["keys"]:
            self._be_heard()
        self._stop.set()
        self._thread.join()
        if error is None and not self._state["failed"]:
            with contextlib.suppress(OSError):
                self.paths[self.rank.index].unlink(missing_ok=True)
        elif error is None:
            self._beat(ended=DONE)
        else:
            self._beat(ended=one_line(error) if isinstance(error, Exception) else "it was stopped")

    def fail(self, run: int, reason: str) -> None:
        """Tell rank 0 that a run of the job, by its place, cannot be counted here."""
        with self._lock:
            self._beat(failed=self._state["failed"] | {str(run): reason})

    def failures(self) -> dict[int, str]:
        """By the place of a run, why another process cannot count it.

        Raises UserError where another process has died: its images would be waited for in vain.
        """
        self._listen()
        found: dict[int, str] = {}
        for index, heard in self._heard.items():
            self._check(index, heard)
            if heard.alive:
                found |= {int(run): reason for run, reason in heard.state.get("failed", {}).items()}
        return found

    def tell(self, run: int, key: str) -> None:
        """Tell rank 0 as what a run of the job, by its place, is recorded here."""
        with self._lock:
            self.token = uuid.uuid4().hex  # rank 0, which welcomes it, has then heard the key too
            self._beat(token=self.token, keys=self._state["keys"] | {str(run): key})

    def disagreeing(self, run: int, key: str) -> dict[int, str]:
        """The processes that record a run as something else, and as what: their images would be waited for in vain."""
        told = {index: heard.keys.get(str(run), key) for index, heard in self._heard.items()}
        return {index: other for index, other in told.items() if other != key}

    def start(self, stage: int) -> None:
        """Begin a stage of the job. Rank 0 lets the others begin it, and they wait until it has."""
        if self.rank.index == 0:
            self._beat(stage=stage)
            return
        while not self._may_start(stage):
            time.sleep(BEAT / 4)

    def _be_heard(self) -> None:
        """Wait until rank 0 has heard what was told last: with the process its file goes."""
        end = time.monotonic() + SILENT
        while self.rank.index and time.monotonic() < end:
            self._listen()
            rank_0 = self._heard[0]
            gone = rank_0.alive and (not rank_0.text or rank_0.state.get("ended"))
            if gone or self.token in rank_0.state.get("welcome", ()):
                return
            time.sleep(BEAT / 4)

    def _may_start(self, stage: int) -> bool:
        self._listen()
        heard = self._heard[0]
        self._check(0, heard)
        return self.token in heard.state.get("welcome", ()) and heard.state.get("stage", -1) >= stage

    def _check(self, index: int, heard: Heard) -> None:
        """Raise UserError unless a process lives or has done its share."""
        name, ended = f"process {index + 1} of {self.rank.count}", heard.state.get("ended")
        silence = time.monotonic() - heard.at
        if heard.alive and ended not in (None, DONE) and not heard.state.get("failed"):  # that says more
            raise UserError(f"{name} has ended ({ended}): {KEPT}")
        if heard.alive and heard.text and ended != DONE and silence > SILENT:
            raise UserError(f"{name} has given no sign of life for {silence:.0f} seconds: {KEPT}")
        if not heard.alive and silence > LATE:
            raise UserError(f"{name} has not begun within {silence:.0f} seconds: {KEPT}")

    def _listen(self) -> None:
        """Read what the others say."""
        with self._lock:
            for index, heard in self._heard.items():
                text = self._read(index)
                if text is not None and text != heard.text:
                    news = Heard(text, time.monotonic(), alive=True)
                    news.keys = heard.keys | news.state.get("keys", {})
                    self._heard[index] = news

    def _read(self, index: int) -> str | None:
        """What a process says; "" where it says nothing, as one that is done, None where it is just writing."""
        try:
            text = self.paths[index].read_text(encoding="utf-8")
            return text if isinstance(json.loads(text), dict) else None
        except FileNotFoundError:
            return ""
        except (OSError, ValueError):
            return None

    def _beat(self, **news: Any) -> None:
        """Give a sign of life. A disk that is full will be said by what writes records."""
        with self._lock:
            self._state |= news | {"beat": self._state["beat"] + 1}
            self._listen()
            if self.rank.index == 0:
                self._state["welcome"] = [heard.state.get("token") for heard in self._heard.values()]
            with contextlib.suppress(OSError):
                self.paths[self.rank.index].write_text(json.dumps(self._state), encoding="utf-8")

    def _live(self) -> None:
        while not self._stop.wait(BEAT):
            self._beat()
            self._end_orphan()

    def _end_orphan(self) -> None:
        """Stop this process, as by a signal from its launcher, where that is dead: nobody else would."""
        if os.getppid() == self.parent:
            return
        if self._stopped_at is None or time.monotonic() - self._stopped_at > GRACE:
            self._stopped_at = time.monotonic()
            os.kill(os.getpid(), signal.SIGTERM)
