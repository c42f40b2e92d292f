"""The comparisons of `benchmarks.returns` once more, with 40 seeds of their own: `python -m benchmarks.fresh`.

For every trial it also records the share of samples that PPO's clip would cut (`benchmarks/ratios.py`): where it is next to
nothing, the trial cannot tell one drift from another. The work is cut into units (an objective, an environment, a budget, ten
seeds), each of which leaves a file in --cells and is not done again. Several processes share it by --part:

    python -m benchmarks.fresh --list                 # the units, one a line
    python -m benchmarks.fresh --part 0/8             # every eighth unit; in other processes 1/8 to 7/8
    python -m benchmarks.fresh --envs CartPole-v1     # the units of some environments
    python -m benchmarks.fresh --merge --cards        # all units -> benchmarks/results/returns-fresh.json, and the cards
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import returns
from benchmarks.ratios import watch
from benchmarks.record import ROOT, provenance
from discover import references
from discover.comparison import Comparison, Curve, Trial
from discover.record import fingerprint, made_with
from discover.settings import rebuild
from discover.setups import Setup
from discover.store import write_text
from discover.train import as_json, resolve_objective
from learned_objectives.cards import TESTED

SEEDS = 40
SEED = 20_261_126  # none of the seeds of searches, references, validation, or of `benchmarks.returns`
BLOCK = 10  # seeds of a unit
GROUPS = ("drifts", "horizons")


class Unit(NamedTuple):
    """Some seeds of one objective in one trial."""

    env: str
    total_steps: int
    objective: str
    first: int  # seed

    @property
    def file(self) -> str:
        return f"{self.env.replace('/', '_')}_{self.total_steps}_{self.objective}_{self.first}.json"


def units() -> list[Unit]:
    """All of them, longest first, each trial and objective once even where groups share it."""
    cells = {
        (env, steps, name): None
        for group in GROUPS
        for env, budgets in returns.GROUPS[group].budgets.items()
        for steps in budgets
        for name in returns.GROUPS[group].objectives
    }
    every = [Unit(*cell, first) for cell in cells for first in range(0, SEEDS, BLOCK)]
    return sorted(every, key=lambda unit: (not unit.env.startswith("brax/"), -unit.total_steps, unit))


def part_of(every: Sequence[Unit], part: str) -> list[Unit]:
    """Part i of n, counted from 0: every n-th unit."""
    i, _, n = part.partition("/")
    if not (i.isdigit() and n.isdigit() and int(i) < int(n)):
        raise SystemExit(f"--part takes i/n with 0 <= i < n, 0/8 for one, and was given {part!r}.")
    return list(every[int(i) :: int(n)])


def measure(unit: Unit, cells: Path) -> None:
    objective, setup = resolve_objective(unit.objective), returns.setups("drifts")[unit.env]
    lives = watch(objective, unit.env, setup, total_steps=unit.total_steps, seed=SEED, first=unit.first, count=BLOCK)
    told = unit._asdict() | {
        "seed": SEED,
        "count": BLOCK,
        "fingerprint": fingerprint(objective),
        "setup": asdict(setup),
        "made_with": made_with(),
        "final_returns": as_json(lives.final_returns.round(3)),
        "cut": lives.metrics["cut"].tolist(),
        "largest": lives.metrics["largest"].tolist(),
    }
    write_text(cells / unit.file, json.dumps(told) + "\n")


def read(unit: Unit, cells: Path) -> dict[str, Any] | None:
    """What a unit's file tells, if it is of this objective, these agents and this seed; None if there is no file."""
    if not (cells / unit.file).exists():
        return None
    told = json.loads((cells / unit.file).read_text())
    same = told["seed"] == SEED and told["fingerprint"] == fingerprint(resolve_objective(unit.objective))
    if not same or rebuild(Setup, told["setup"]) != returns.setups("drifts")[unit.env]:
        raise SystemExit(
            f"{cells / unit.file} holds another objective, agent or seed: remove it, or choose other --cells."
        )
    return told


Known = dict[tuple[Trial, str], list[dict[str, Any]]]  # blocks of seeds in order


def gather(cells: Path) -> Known:
    """Trials and objectives all of whose seeds are there."""
    blocks: Known = {}
    for unit in sorted(units(), key=lambda unit: unit.first):
        if told := read(unit, cells):
            blocks.setdefault((Trial(unit.env, unit.total_steps), unit.objective), []).append(told)
    return {cell: found for cell, found in blocks.items() if len(found) == SEEDS // BLOCK}


def joined(found: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """f32[S] of all blocks."""
    return np.asarray([np.nan if x is None else x for told in found for x in told[name]], np.float32)


def comparison_of(group: str, known: Known) -> Comparison:
    asked = returns.GROUPS[group]
    curves: dict[Trial, dict[str, Curve]] = {}
    for trial in (Trial(env, n) for env, budgets in asked.budgets.items() for n in budgets):
        here = {
            name: Curve(joined(known[trial, name], "final_returns")[:, None], np.asarray([trial.total_steps], np.int64))
            for name in asked.objectives
            if (trial, name) in known
        }
        if asked.baseline in here:
            curves[trial] = here
    return Comparison(curves, {})


def ratios_of(group: str, known: Known) -> list[dict[str, Any]]:
    """For every trial and objective: the share of samples that PPO's clip would cut, and the largest |r - 1|."""
    return [
        {
            "env": trial.env,
            "total_steps": trial.total_steps,
            "objective": name,
            "cut": float(joined(found, "cut").mean()),
            "largest": float(joined(found, "largest").max()),
        }
        for (trial, name), found in known.items()
        if trial.total_steps in returns.GROUPS[group].budgets.get(trial.env, ())
    ]


def parts_of(group: str, comparison: Comparison) -> dict[str, Comparison]:
    parts = {"all": comparison, "never seen": returns.unseen(comparison, returns.GROUPS[group])}
    return {which: part for which, part in parts.items() if part.curves}


def report_of(group: str, known: Known) -> dict[str, Any]:
    asked, comparison = returns.GROUPS[group], comparison_of(group, known)
    parts = parts_of(group, comparison)
    return provenance() | {
        "about": asked.about,
        "trained_by": sorted({str(told["made_with"]["commit"]) for found in known.values() for told in found}),
        "seeds": SEEDS,
        "seed": SEED,
        "setups": {env: asdict(setup) for env, setup in returns.setups(group).items()},
        "objectives": {name: fingerprint(resolve_objective(name)) for name in comparison.objectives},
        "rows": returns.rows(comparison, asked.baseline),
        "ratios": ratios_of(group, known),
        f"better than {asked.baseline}": {
            which: {name: returns.better_over_all(part, name, asked.baseline) for name in part.objectives}
            for which, part in parts.items()
        },
        "pairs": returns.beside(comparison, asked.pairs),
        "summary": {which: returns.summary_of(part, asked.baseline) for which, part in parts.items()},
        "references": {trial.env: references.of(trial.env) for trial in comparison.common()},
    }


def write_cards(known: Known) -> None:
    """Put what was found into the file from which cards are made."""
    tested = json.loads(TESTED.read_text())
    for group in GROUPS:
        comparison = comparison_of(group, known)
        for name in comparison.objectives:
            tested.setdefault(name, {})[group] = returns.card(comparison, name, returns.GROUPS[group], SEEDS)
    write_text(TESTED, json.dumps(tested, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fresh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", default="0/1", help="i/n: every n-th unit, from number i on")
    parser.add_argument("--envs", nargs="+", help="only the units of these environments")
    parser.add_argument("--objectives", nargs="+", help="only the units of these objectives")
    parser.add_argument("--cells", type=Path, default=ROOT / "runs/fresh", help="a file for each unit that is done")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/returns-fresh.json")
    parser.add_argument("--list", action="store_true", help="print the units that are not done, and train nothing")
    parser.add_argument(
        "--merge", action="store_true", help="write --out from the units that are done, and train nothing"
    )
    parser.add_argument("--cards", action="store_true", help="with --merge: put the results into the cards as well")
    args = parser.parse_args(argv)
    args.cells.mkdir(parents=True, exist_ok=True)
    if args.merge:
        known = gather(args.cells)
        report = {group: report_of(group, known) for group in GROUPS}
        for group in GROUPS:
            comparison = comparison_of(group, known)
            if comparison.curves:
                returns.draw(group, comparison, parts_of(group, comparison), args.out.parent)
        if args.cards:
            write_cards(known)
        write_text(args.out, json.dumps({"groups": report}, indent=1, allow_nan=False) + "\n")
        print(f"{len(known)} of {len(units()) * BLOCK // SEEDS} cells are in {os.path.relpath(args.out)}.")
        return
    chosen = [
        u for u in units() if u.env in (args.envs or [u.env]) and u.objective in (args.objectives or [u.objective])
    ]
    for unit in part_of(chosen, args.part):
        if read(unit, args.cells) is not None:
            continue
        if not args.list:
            measure(unit, args.cells)
        print(*unit, flush=True)


if __name__ == "__main__":
    main()
