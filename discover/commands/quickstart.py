"""`discover quickstart`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Quickstart:
    """Discover a drift in minutes, starting from none; compare it with PPO and with nothing; draw it."""

    out: Path = Path("runs/quickstart")  # the run's own directory


def run(args: Quickstart) -> int:
    from discover.quickstart import quickstart

    return quickstart(args.out)
