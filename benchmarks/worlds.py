"""Do discovered update rules hold up in worlds they never saw? `python -m benchmarks.worlds lpg=runs/a,runs/b,runs/c ...`

Meta-test of searches over LPG: every objective trains fresh agents on held-out levels, with the hyperparameters of the tabular
agent for all, and A2C and the rule its search began with beside it. Agent s of a world has the same level and keys under every
objective. A score is a final return in units of A2C's mean in that world. Several meta-seeds of one search are given with commas
between them; intervals are over levels and the agents in them, and each meta-seed stands by itself besides.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import learned_objectives as lo
from benchmarks.record import ROOT, provenance
from discover import statistics
from discover.comparison import Trial
from discover.evaluate import evaluate
from discover.recipe import recipe_of
from discover.record import fingerprint

HELD_OUT = ("gridworld/small", "gridworld/medium", "gridworld/dense", "gridworld/sparse", "gridworld/long")
SEEDS = 16  # levels and agents of each world
SEED = 77_000  # far from the seeds of any search
UPDATE = 1280  # environment steps


def pooled(*runs: np.ndarray) -> np.ndarray:
    """f64[..., worlds, meta-seeds x levels]: the IQM of all meta-seeds together, of scores [..., worlds, levels] for each."""
    return statistics.iqm(np.concatenate(runs, axis=-1))


def over_levels(statistic: Callable[..., np.ndarray], *runs: np.ndarray) -> statistics.Interval:
    """Levels are drawn again, and the same ones for every meta-seed: three meta-seeds on a level are not three levels."""
    return statistics.interval(statistic, *runs, paired=True)


def gain(ours: int) -> Callable[..., np.ndarray]:
    """The mean of the first `ours` sets less that of the others."""

    def statistic(*runs: np.ndarray) -> np.ndarray:
        return statistics.paired_improvement(np.mean(runs[:ours], axis=0), np.mean(runs[ours:], axis=0))

    return statistic


def judge(found: list[np.ndarray], began: list[np.ndarray], a2c: np.ndarray) -> dict[str, Any]:
    """What one search came to, of scores [worlds, levels] for each of its meta-seeds."""

    def by_world(runs: list[np.ndarray]) -> dict[str, statistics.Interval]:
        return {world: over_levels(pooled, *(x[[i]] for x in runs)) for i, world in enumerate(HELD_OUT)}

    return {
        "iqm": over_levels(pooled, *found),
        "iqm_by_world": by_world(found),
        "iqm_by_meta_seed": [float(statistics.iqm(x)) for x in found],
        "began_iqm": over_levels(pooled, *began),
        "began_iqm_by_world": by_world(began),
        "gain_over_its_beginning": over_levels(gain(len(found)), *found, *began),
        "gain_over_a2c": over_levels(gain(len(found)), *found, a2c),
        "scores": [x.round(4).tolist() for x in found],
        "began_scores": [x.round(4).tolist() for x in began],
    }


def compare(ours: list[np.ndarray], theirs: list[np.ndarray]) -> dict[str, Any]:
    def better(*runs: np.ndarray) -> np.ndarray:
        sides = (np.concatenate(side, axis=-1) for side in (runs[: len(ours)], runs[len(ours) :]))
        return statistics.probability_of_improvement(*sides)

    return {
        "gain": over_levels(gain(len(ours)), *ours, *theirs),
        "probability_of_improvement": over_levels(better, *ours, *theirs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("searches", nargs="+", help="name=run,run,...")
    parser.add_argument("--updates", type=int, default=250, help="of each agent")
    parser.add_argument(
        "--cells", type=Path, default=ROOT / "runs/worlds", help="what is done already is not done again"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/worlds.json")
    args = parser.parse_args()
    searches = {name: runs.split(",") for name, runs in (each.split("=", 1) for each in args.searches)}

    records = {
        name: [lo.record(Path(run) / "objective.safetensors") for run in runs] for name, runs in searches.items()
    }
    began = {name: [recipe_of(record).template() for record in rows] for name, rows in records.items()}
    steps = args.updates * UPDATE
    comparison = evaluate(
        {"a2c": "a2c"}
        | {f"{name} {run}": run for name, runs in searches.items() for run in runs}
        | {fingerprint(x): x for templates in began.values() for x in templates},  # searches of one seed may share one
        HELD_OUT,
        total_steps=steps,
        num_seeds=SEEDS,
        seed=SEED,
        num_evals=5,
        out=args.cells / str(args.updates),
        progress=lambda line: print(line, flush=True),
    )

    def raw(name: str) -> np.ndarray:
        return np.stack([comparison.curves[Trial(env, steps)][name].final for env in HELD_OUT]).astype(np.float64)

    unit = raw("a2c").mean(1, keepdims=True)
    if not (unit > 0).all():
        raise SystemExit(
            f"A2C comes to {unit[:, 0]} in {HELD_OUT}, by which nothing can be measured: give it more --updates."
        )
    a2c = raw("a2c") / unit
    found = {name: [raw(f"{name} {run}") / unit for run in runs] for name, runs in searches.items()}
    report = {
        **provenance(),
        "levels": SEEDS,
        "updates": args.updates,
        "a2c": {
            "unit": dict(zip(HELD_OUT, unit[:, 0].tolist(), strict=True)),
            "iqm_by_world": dict(zip(HELD_OUT, map(statistics.iqm_interval, a2c), strict=True)),
            "iqm": statistics.iqm_interval(a2c),
        },
        "searches": {
            name: judge(found[name], [raw(fingerprint(x)) / unit for x in began[name]], a2c)
            | {"records": records[name]}
            for name in searches
        },
        "comparisons": {
            f"{ours} over {theirs}": compare(found[ours], found[theirs])
            for ours, theirs in itertools.combinations(searches, 2)
        },
    }
    args.out.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    for name, each in report["searches"].items():
        print(f"{name}: {each['iqm']:.2f}, began {each['began_iqm']:.2f}, meta-seeds {each['iqm_by_meta_seed']}")


if __name__ == "__main__":
    main()
