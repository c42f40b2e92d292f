"""Do discovered update rules hold up in worlds they never saw? `python -m benchmarks.worlds lpg=runs/a,runs/b,runs/c ...`

Meta-test of searches over LPG: every objective trains fresh agents on held-out levels, with the hyperparameters of the tabular
agent for all, and A2C and the rule its search began with beside it. Agent s of a world has the same level and keys under every
objective. A score is a final return in units of A2C's mean in that world. Several meta-seeds of one search are given with commas
between them; intervals are over levels and agents, and each meta-seed stands by itself besides.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

import learned_objectives as lo
from benchmarks.record import ROOT, provenance
from discover import statistics
from discover.evaluate import Trial, evaluate, fingerprint
from discover.recipe import recipe_of

HELD_OUT = ("gridworld/small", "gridworld/medium", "gridworld/dense", "gridworld/sparse", "gridworld/long")
SEEDS = 16  # levels and agents of each world
SEED = 77_000  # far from the seeds of any search
UPDATE = 1280  # environment steps


def seeds_together(runs: list[np.ndarray]) -> np.ndarray:
    """[worlds, meta-seeds x SEEDS] of [worlds, SEEDS] each."""
    return np.concatenate(runs, axis=1)


def judge(found: list[np.ndarray], began: list[np.ndarray], a2c: np.ndarray) -> dict[str, Any]:
    """What one search came to, of scores [worlds, SEEDS] for each of its meta-seeds."""
    ours, theirs = seeds_together(found), seeds_together(began)
    by_world = [statistics.iqm_interval(row) for row in ours]
    return {
        "iqm_by_world": dict(zip(HELD_OUT, by_world, strict=True)),
        "iqm": statistics.iqm_interval(ours),
        "iqm_by_meta_seed": [float(statistics.iqm(x)) for x in found],
        "began_iqm_by_world": dict(zip(HELD_OUT, map(statistics.iqm_interval, theirs), strict=True)),
        "began_iqm": statistics.iqm_interval(theirs),
        "gain_over_its_beginning": statistics.interval(statistics.paired_improvement, ours, theirs, paired=True),
        "gain_over_a2c": statistics.interval(
            statistics.paired_improvement, ours, seeds_together([a2c] * len(found)), paired=True
        ),
    }


def compare(ours: list[np.ndarray], theirs: list[np.ndarray]) -> dict[str, Any]:
    sets = seeds_together(ours), seeds_together(theirs)
    return {
        "probability_of_improvement": statistics.interval(statistics.probability_of_improvement, *sets),
        "gain": statistics.interval(statistics.paired_improvement, *sets, paired=True)
        if len(ours) == len(theirs)
        else None,
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

    unit = np.maximum(raw("a2c").mean(1, keepdims=True), 1e-6)
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
            | {"records": records[name], "scores": [x.round(4).tolist() for x in found[name]]}
            for name in searches
        },
        "comparisons": {
            f"{ours} over {theirs}": compare(found[ours], found[theirs])
            for ours, theirs in itertools.combinations(searches, 2)
        },
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    for name, each in report["searches"].items():
        print(f"{name}: {each['iqm']:.2f}, began {each['began_iqm']:.2f}, meta-seeds {each['iqm_by_meta_seed']}")


if __name__ == "__main__":
    main()
