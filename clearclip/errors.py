"""Errors for users: one sentence, no traceback."""

import functools
import os
import re
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# What breaks a line, a terminal or an XML file: control characters, lone surrogates, U+FFFE and U+FFFF.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")


class UserError(Exception):
    """Bad input. Its message is one sentence that names the file or option and the remedy."""


def one_line(error: BaseException) -> str:
    """The message of any exception, fit for a sentence."""
    return " ".join(str(error).split()) or type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Whether an error, of Python's or PyTorch's, says that memory ran out."""
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def printable(text: str) -> str:
    """`text` with an escape such as `\\x1b` for every character that no line of text can hold."""
    return UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def _let_go_of_stdout() -> None:
    """Send to nowhere what cannot be printed."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def program(main: Callable[P, R]) -> Callable[P, R]:
    """Wrap a command-line `main`: a `UserError` becomes one line on stderr and exit status 2.

    So does what the system says of a file that no one expected, such as that the disk is full.
    """

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            result = main(*args, **kwargs)
            if sys.stdout:  # None where it is closed; flushed here, for at Python's end it would be a traceback
                sys.stdout.flush()
            return result
        except UserError as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None
        except BrokenPipeError:  # the reader of our output went away, as `| head` does
            _let_go_of_stdout()
            raise SystemExit(1) from None
        except OSError as error:
            if error.errno is None:  # a library's own, and not of the system
                raise
            _let_go_of_stdout()
            place = f"{error.filename}: " if error.filename is not None else ""
            print(
                f"error: {printable(f'{place}{error.strerror}')}; check the place, its space and permissions",
                file=sys.stderr,
            )
            raise SystemExit(2) from None

    return run
