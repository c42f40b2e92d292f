"""A progress bar on a terminal, with rate and time left; nothing elsewhere."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from discover.formats import clock

_bar: _Bar | None = None


@contextlib.contextmanager
def bar(unit: str) -> Iterator[None]:
    """On a terminal, a bar below the lines that are printed while the context lasts. `reached` moves it.

    `unit`: what is counted, in the singular.
    """
    global _bar
    stream = _terminal()
    if stream is None or _bar is not None:
        yield
        return
    _bar = _Bar(unit, stream)
    try:
        yield
    finally:
        _bar.close()
        _bar = None


def reached(done: float, total: float) -> None:
    """Move the bar, if there is one."""
    if _bar is not None:
        _bar.move(done, total)


def _terminal() -> Any | None:
    """stderr, or else stdout, whichever is a terminal that can move its cursor."""
    if os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        return None
    return next((stream for stream in (sys.stderr, sys.stdout) if stream.isatty()), None)


def pace(seconds: float, left: float, since: float, unit: str) -> str:
    """Rate and time left. `seconds`: of one unit; `left`: units that are left; `since`: seconds since the last unit."""
    if not seconds:
        return ""
    shown = f"{1 / seconds:.1f} {unit}s/s" if seconds < 1 else f"{seconds:.1f} s/{unit}"
    return f"{shown}  {clock(max(left * seconds - since, 0))} left"


class _Bar:
    """A bar of rich's. It appears with the first `move`, from which on the rate is measured, smoothed over moves."""

    def __init__(self, unit: str, stream: Any):
        self.unit, self.stream = unit, _Closable(stream)
        self.progress: Any = None
        self.done = self.total = self.at = self.seconds = 0.0

    def move(self, done: float, total: float) -> None:
        now = time.monotonic()
        if self.progress is not None and done > self.done:
            each = (now - self.at) / (done - self.done)
            self.seconds = 0.7 * (self.seconds or each) + 0.3 * each
        self.done, self.total, self.at = done, total, now
        if self.progress is None:
            self.progress = self._opened()
        self.progress.update(self.progress.task_ids[0], completed=done, total=total)

    def _opened(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn
        from rich.text import Text

        shown = self._shown

        class Pace(ProgressColumn):
            def render(self, task):
                return Text(shown())

        progress = Progress(
            BarColumn(),
            Pace(),
            console=Console(file=self.stream),
            transient=True,
            refresh_per_second=2,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )
        progress.add_task("", total=self.total, completed=self.done)
        progress.start()
        return progress

    def _shown(self) -> str:
        count = f"{math.floor(self.done + 1e-6)}/{self.total:.0f} {self.unit}s"
        rest = pace(self.seconds, self.total - self.done, time.monotonic() - self.at, self.unit)
        return f"{count}  {rest}".rstrip()

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()


class _Closable:
    """A terminal. Once it has been closed, what is written to it is dropped."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        with _unless_closed():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _unless_closed():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _unless_closed() -> Iterator[None]:
    try:
        yield
    except OSError as closed:
        if closed.errno != errno.EIO:
            raise
