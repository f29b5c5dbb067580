"""What a program is waiting for, on stderr: one line that is written over, or nothing where that is no terminal."""

import sys
import time

PATIENCE = 30.0  # seconds after which one who reads a log wants to know


class Status:
    """A line that says what goes on.

    On a terminal it shows each stage at once. Elsewhere long work alone is told of, in a line every 30 seconds.
    `quiet` leaves all of it out, notes and errors are said in any case.
    """

    def __init__(self, quiet: bool = False):
        self.terminal = sys.stderr.isatty()
        self.quiet = quiet
        self.said_at = time.monotonic()
        self.shown = False

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
