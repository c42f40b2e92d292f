"""Turns on one device among several processes: all compile side by side, and each measures alone.

A process that has compiled says so by a file beside the lock. Its parent ends those that take too long to compile, so that they
do not delay the others."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "DISCOVER_TURNS"  # names the file that the processes lock; without it no process waits

_file = open(os.environ[VARIABLE], "a") if VARIABLE in os.environ else None  # noqa: SIM115
if _file:
    fcntl.flock(_file, fcntl.LOCK_SH)  # held while this process compiles


def ready(lock: str, pid: int) -> Path:
    """The file that exists as soon as a process has compiled."""
    return Path(f"{lock}.{pid}")


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Wait until no process compiles or measures, and keep the others waiting."""
    if _file is None:
        yield
        return
    ready(_file.name, os.getpid()).touch()
    fcntl.flock(_file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(_file, fcntl.LOCK_UN)
