"""What a program is waiting for, on stderr: one line that is written over, or nothing where that is no terminal."""

import logging
import sys
import time
from types import TracebackType

PATIENCE = 30.0  # seconds after which one who reads a log wants to know


class Status:
    """A line that says what goes on.

    On a terminal it shows each stage at once. Elsewhere long work alone is told of, in a line every 30 seconds.
    `quiet` leaves all of it out, notes and errors are said in any case. While it is entered, what the package logs
    stands on lines of its own.
    """

    def __init__(self, quiet: bool = False):
        self.terminal = sys.stderr.isatty()
        self.quiet = quiet
        self.said_at = time.monotonic()
        self.shown = False
        self._handler = _Notes(self)

    def __enter__(self) -> "Status":
        if self.terminal:
            logging.getLogger("clearclip").addHandler(self._handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()
        logging.getLogger("clearclip").removeHandler(self._handler)

    def say(self, what: str) -> None:
        """This is what goes on now."""
        if self.quiet:
            return
        if self.terminal:
            sys.stderr.write(f"\r\x1b[K{what} …")
            sys.stderr.flush()
            self.shown = True
        elif time.monotonic() - self.said_at >= PATIENCE:
            self.said_at = time.monotonic()
            print(what, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Nothing goes on: the line is empty for what else is printed."""
        if self.shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self.shown = False

    def note(self, words: str) -> None:
        """A line that stays."""
        self.clear()
        print(words, file=sys.stderr, flush=True)


class _Notes(logging.Handler):
    """What is logged, as notes."""

    def __init__(self, status: Status):
        super().__init__(logging.WARNING)
        self.status = status

    def emit(self, record: logging.LogRecord) -> None:
        self.status.note(self.format(record))
