"""`discover distil`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from discover.console import print_line


@dataclass(frozen=True)
class Distil:
    """Write a searched drift as formulas: from few operations and a large error to many and a small one.

    Example: discover distil lpo_2026_11 --out runs/formulas
    """

    objective: tyro.conf.Positional[str]  # a name (`discover list`), a .safetensors file, or the directory of a run
    generations: int = 60  # of proposals; ends earlier where the error is that of rounding
    children: int = 64  # proposals of a generation, for all samples, and for those of each sign of the advantage
    operations: int = 24  # most of a formula
    seed: int = 0  # the same seed gives the same formulas
    out: Path | None = None  # a directory for front.json, front.png and a file for each formula


def run(args: Distil) -> None:
    from discover.evaluation.distil import FILE, distil
    from discover.searches.distillation import DistilConfig

    if args.out is not None and args.out.is_file():
        raise ValueError(f"{args.out} is a file: choose a directory as --out.")
    config = DistilConfig(args.generations, args.children, args.operations, args.seed)
    front = distil(args.objective, config, out=args.out, progress=print_line)
    print_line("\n" + front.table())
    if args.out is not None:
        print_line(f"wrote {args.out / FILE}, front.png and {len(front.formulas)} files of formulas beside it")
