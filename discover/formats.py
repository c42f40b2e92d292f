"""Numbers as logs and lines have them."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any


def number(x: Any) -> float | None:
    """A number for JSON, which has no NaN."""
    return round(float(x), 6) if math.isfinite(x) else None


def mean_return(returns: list[float | None]) -> float | None:
    """Over lives; None if any diverged."""
    known = [r for r in returns if r is not None]
    return sum(known) / len(known) if known and len(known) == len(returns) else None


def show(value: float | None) -> str:
    return "none" if value is None or math.isnan(value) else f"{value:.1f}"


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}d{hours % 24:02d}h"
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


def write_text(path: Path, text: str) -> None:
    """Atomically: the path holds the old text or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)
