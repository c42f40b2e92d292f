"""What the functions of the public API are given: of the right kind, or refused with a sentence."""

from __future__ import annotations

import operator
import os
from pathlib import Path
from typing import Any

from discover.agents.config import AgentConfig
from discover.agents.setups import LossConfig


def whole(name: str, value: Any) -> int:
    """An int of whatever counts as one, NumPy's too. Floats do not, not even whole ones. TypeError with a sentence."""
    try:
        return operator.index(value)
    except TypeError:
        instead = int(value) if isinstance(value, float) and value.is_integer() else "an int"
        raise TypeError(f"{name} must be a whole number, and is {value!r}: give {instead}.") from None


def require_counts(**counts: int) -> None:
    for name, count in counts.items():
        if whole(name, count) < 1:
            raise ValueError(f"{name} must be at least 1, and is {count}.")


def require_seed(seed: int) -> None:
    if not 0 <= whole("seed", seed) < 2**31:
        raise ValueError(f"seed must be in [0, 2^31), and is {seed}.")


def require_settings(agent: AgentConfig | None, loss: LossConfig | None) -> None:
    for name, value, kind in (("agent", agent, AgentConfig), ("loss", loss, LossConfig)):
        if value is not None and not isinstance(value, kind):
            raise TypeError(
                f"{name} must be a discover.{kind.__name__}, and is a {type(value).__name__}: "
                f"give discover.{kind.__name__}(...), or leave it out."
            )


def directory_of(out: str | os.PathLike) -> Path:
    """The path of a directory, which need not exist. TypeError for what is no path, ValueError for an empty one."""
    if not isinstance(out, str | os.PathLike):
        raise TypeError(f"out must be the path of a directory, and is {out!r}: give a string or a Path.")
    if not os.fspath(out):
        raise ValueError("out must be the path of a directory, and is empty: give '.' for this one.")
    return Path(out)
