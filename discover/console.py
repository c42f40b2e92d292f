"""What is said to whoever started this, in a terminal that may have been closed since."""

from __future__ import annotations

import errno
import os
import sys


def tell(line: str, *, error: bool = False) -> None:
    """Print it. Where the terminal has been closed nobody reads any more, and what runs goes on, or ends, in silence."""
    stream = sys.stderr if error else sys.stdout
    try:
        print(line, file=stream, flush=True)
    except OSError as closed:
        if closed.errno != errno.EIO:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
