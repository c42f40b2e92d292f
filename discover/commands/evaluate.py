"""`discover evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from discover.console import print_line
from discover.progress import bar


@dataclass(frozen=True)
class Evaluate:
    """Train objectives side by side in the same environments with the same agents, and compare their returns.

    The same line again, with the same --out, continues where it stopped; with more objectives or environments it adds them.

    Example: discover evaluate ppo dpo runs/lpo --envs Breakout-MinAtar Asterix-MinAtar --num-seeds 10 --out results
    """

    objectives: tyro.conf.Positional[tuple[str, ...]]  # names, files or directories of runs
    envs: tuple[str, ...]  # names (`discover list`)
    total_steps: tuple[int, ...] = (500_000,)  # environment steps of each agent: one budget, or several
    num_seeds: int = 10  # agents per objective and environment
    seed: int = 0  # agent number i of a seed has the same key, however many there are
    num_evals: int = 20  # points of the learning curves
    chunk: int | None = None  # agents trained side by side on a device; None: as many as suit it
    out: Path | None = None  # a directory for evaluation.json and figures


def run(args: Evaluate) -> None:
    from discover.evaluation.evaluate import evaluate

    with bar("cell"):
        comparison = evaluate(
            args.objectives,
            args.envs,
            total_steps=args.total_steps,
            num_seeds=args.num_seeds,
            seed=args.seed,
            num_evals=args.num_evals,
            chunk=args.chunk,
            out=args.out,
            progress=print_line,
        )
    print_line(f"\nIQM of the final return over {args.num_seeds} seeds, with its 95% interval")
    print_line(comparison.table())
    if args.out is not None:
        print_line(f"wrote {args.out / 'evaluation.json'} and figures beside it")
