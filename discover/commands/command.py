"""What the command line knows of a command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Command(NamedTuple):
    """A command: the dataclass of its arguments, its function, and its own parser if it has one."""

    arguments: type
    run: Callable[[Any], int | None]  # returns the exit status; None is 0
    parse: Callable[[list[str]], Any] | None = None  # from the words after the command; None: tyro's, from `arguments`
