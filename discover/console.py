"""Messages for the user, in a terminal that may have been closed."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

OURS = (str(Path(__file__).parent), contextlib.__file__)


class Advice(UserWarning):
    """What this package warns of, in a sentence: the command line prints it as it is."""


def print_line(line: str, *, error: bool = False) -> None:
    """Print a line. If the terminal has been closed, the line is dropped and the process continues."""
    stream = sys.stderr if error else sys.stdout
    try:
        print(line, file=stream, flush=True)
    except OSError as closed:
        if closed.errno != errno.EIO:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def reader_left() -> int:
    """The exit status where the reader of a pipe has left: `discover list | head`. Nothing more is written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def advise(sentence: str) -> None:
    """Warn, at the caller's line: the nearest one outside of this package and of its decorators."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(OURS):
        level, frame = level + 1, frame.f_back
    warnings.warn(sentence, Advice, stacklevel=level)


@contextlib.contextmanager
def plain_advice() -> Iterator[None]:
    """Advice goes to stderr without the line of code that it is about, which is not the user's. Also a decorator."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_advice(message, category, *where, **how):
            if issubclass(category, Advice):
                print_line(f"discover: {message}", error=True)
            else:
                show(message, category, *where, **how)

        warnings.showwarning = show_advice
        yield
