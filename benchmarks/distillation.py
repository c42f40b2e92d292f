"""How few operations write a searched drift: `python -m benchmarks.distillation`, again to go on.

`discover.distil` writes each objective as formulas, once for each seed. The report has, for each objective, the front of all
seeds; for each seed the least error of formulas of at most 8, 16 and 24 operations; and the errors of the formulas of PPO and
DPO with their own constants, and with constants that are fitted to the drift as those of the formulas are. "error without time"
is the least that a formula can have that does not read the time.

The error is the root mean square of the difference in values and in slopes, each over the root mean square of the drift's own.
"elsewhere" is at other log r and A than those of the fit.

Fronts are kept in runs/distillation. Writes benchmarks/results/distillation.json after each objective, and distillation.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import ROOT, provenance
from discover.agents.objectives import identity, resolve_objective
from discover.evaluation.distil import Front, distil
from discover.plots.fronts import size_and_error
from discover.runs.store import write_text
from discover.searches.distillation import DistilConfig, Formula, front_of
from discover.searches.fitting import error_of, samples_of, tuned
from discover.searches.program_family import PPO
from learned_objectives.parsing import parse

OBJECTIVES = ("lpo_2026_11", "ta_lpo_2026_11")
SIZES = (8, 16, 24)
DPO = "where(A < 0, relu(log_r * A - 0.6 * tanh(log_r * A / 0.6)), relu(r1 * A - 2 * tanh(r1 * A / 2)))"


def known_formulas(name: str) -> dict[str, dict[str, float]]:
    """The errors of PPO's and DPO's formula for the drift of an objective."""
    samples = samples_of(resolve_objective(name).drift)  # type: ignore[attr-defined]
    found = {}
    for formula, text in (("ppo", PPO), ("dpo", DPO)):
        code, constants = parse(text)
        own = error_of(code, np.array(constants), samples)
        found[formula] = {"own constants": own, "fitted constants": tuned(code, np.array(constants), samples)[1]}
    return found


def error_without_time(name: str) -> float:
    """The error of the mean of a drift over n/N and N: the least of any formula that does not read the time."""
    samples = samples_of(resolve_objective(name).drift)  # type: ignore[attr-defined]
    pairs = np.stack([samples.variables[v].value for v in ("log_r", "A")])
    place = np.unique(pairs, axis=1, return_inverse=True)[1].ravel()
    mean = lambda y: (np.bincount(place, y) / np.bincount(place))[place]
    parts = ((samples.value, samples.value_scale), (samples.slope, samples.slope_scale))
    return float(np.sqrt(sum(np.mean(((y - mean(y)) / scale) ** 2) for y, scale in parts) / 2.0))


def front_from(folder: Path, name: str, config: DistilConfig) -> Front:
    """The front of an objective, from disk where it is there."""
    what = json.dumps([identity(resolve_objective(name)), dataclasses.asdict(config)])
    path = folder / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        distil(name, config).save(path)
    return Front.load(path)


def report_of(name: str, fronts: dict[int, Front]) -> dict[str, Any]:
    """The fronts by seed."""
    every = {f.text: f for front in fronts.values() for f in front.formulas}
    joint = front_of([Formula(f.text, f.operations, f.error) for f in every.values()])
    least = {
        seed: {size: min((f.error for f in front.formulas if f.operations <= size), default=None) for size in SIZES}
        for seed, front in fronts.items()
    }
    return {
        "identity": identity(resolve_objective(name)),
        "variables": next(iter(fronts.values())).variables,
        "front of all seeds": [every[each.text]._asdict() for each in joint],
        "least error by seed and most operations": least,
        "known formulas": known_formulas(name),
        "error without time": error_without_time(name),
        "texts proposed": {seed: front.proposed for seed, front in fronts.items()},
        "structures fitted": {seed: front.fitted for seed, front in fronts.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objectives", nargs="*", default=list(OBJECTIVES), help="names, files or directories of runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fronts", type=Path, default=ROOT / "runs/distillation", help="where fronts are kept")
    parser.add_argument("--generations", type=int, default=DistilConfig.generations)
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error("at least one seed is needed.")
    report: dict[str, Any] = provenance() | {"generations": args.generations, "objectives": {}}
    for name in args.objectives:
        fronts = {}
        for seed in range(args.seeds):
            fronts[seed] = front_from(args.fronts, name, DistilConfig(generations=args.generations, seed=seed))
            print(f"{name}, seed {seed}\n{fronts[seed].table()}", flush=True)
        report["objectives"][name] = report_of(name, fronts)
        text = json.dumps(report, indent=1)
        write_text(ROOT / "benchmarks/results/distillation.json", text + "\n")
    fronts = {name: each["front of all seeds"] for name, each in report["objectives"].items()}
    drawn = {name: ([f["operations"] for f in front], [f["error"] for f in front]) for name, front in fronts.items()}
    size_and_error(drawn).savefig(ROOT / "benchmarks/results/distillation.png", dpi=150)
    return 0


if __name__ == "__main__":
    sys.exit(main())
