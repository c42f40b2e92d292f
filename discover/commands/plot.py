"""`discover plot`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from discover.console import print_line


@dataclass(frozen=True)
class Plot:
    """Draw a run: how its fitness moved, and what it found: a drift beside PPO's, or an LPG's targets.

    Example: discover plot runs/lpo
    """

    run: tyro.conf.Positional[Path]  # the directory of a run
    out: Path | None = None  # where the figures go; default: the run's own directory


def run(args: Plot) -> None:
    from discover.plots import draw_run

    if args.out is not None and args.out.is_file():
        raise ValueError(f"{args.out} is a file: choose a directory as --out.")
    for path in draw_run(args.run, args.out or args.run):
        print_line(f"wrote {path}")
