"""What is said to whoever started this, in a terminal that may have been closed since."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

OURS = (str(Path(__file__).parent), contextlib.__file__)


class Advice(UserWarning):
    """What this package warns of, in a sentence: the command line prints it as it is."""


def tell(line: str, *, error: bool = False) -> None:
    """Print it. Where the terminal has been closed nobody reads any more, and what runs goes on, or ends, in silence."""
    stream = sys.stderr if error else sys.stdout
    try:
        print(line, file=stream, flush=True)
    except OSError as closed:
        if closed.errno != errno.EIO:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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

        def told(message, category, *where, **how):
            if issubclass(category, Advice):
                tell(f"discover: {message}", error=True)
            else:
                show(message, category, *where, **how)

        warnings.showwarning = told
        yield
