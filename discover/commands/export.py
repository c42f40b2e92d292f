"""`discover export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from discover.console import print_line


@dataclass(frozen=True)
class Export:
    """Write the objective of a run to a file that `learned_objectives.load` reads.

    Example: discover export runs/lpo my_lpo.safetensors
    """

    run: tyro.conf.Positional[Path]  # the directory of a run
    file: tyro.conf.Positional[Path]  # to write; must not exist


def run(args: Export) -> None:
    import learned_objectives as lo

    source = args.run / "objective.safetensors"
    if not source.exists():
        raise ValueError(f"{args.run} holds no objective.safetensors: give the directory of a run.")
    if args.file.suffix != ".safetensors":
        raise ValueError(f"expected the name of a file that ends in .safetensors, and got {args.file}: add the ending.")
    if args.file.exists():
        raise ValueError(f"{args.file} exists already: choose another name, or remove it.")
    if not args.file.parent.is_dir():
        raise ValueError(f"{args.file.parent} is not a directory: make it first.")
    lo.save(lo.load(source), args.file, lo.record(source))
    print_line(f'wrote {args.file}: learned_objectives.load("{args.file}")')
