"""Do discovered update rules hold up in worlds they never saw? `python -m benchmarks.worlds lpg=runs/a,runs/b,runs/c ...`

Meta-test of searches over LPG: every objective trains fresh agents on held-out levels, with the hyperparameters of the tabular
agent for all, and A2C and the rule its search began with beside it. Agent s of a world has the same level and keys under every
objective. A score is a final return in units of A2C's mean in that world. Several meta-seeds of one search are given with commas
between them. Intervals are of two levels, meta-seeds and then held-out levels (`over_runs` of `discover.results.statistics`): a
claim about a method is a claim about its next meta-seed. The report names the environment steps that each search was given.

`--restate` makes the statistics again from the scores in --out, and trains nothing but A2C.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import learned_objectives as lo
from benchmarks.record import ROOT, provenance
from discover.agents.objectives import fingerprint
from discover.evaluation.evaluate import evaluate
from discover.results import statistics
from discover.results.comparison import Trial
from discover.searches.recipe import recipe_of

HELD_OUT = ("gridworld/small", "gridworld/medium", "gridworld/dense", "gridworld/sparse", "gridworld/long")
SEEDS = 16  # levels and agents of each world
SEED = 77_000  # far from the seeds of any search
UPDATE = 1280  # environment steps

Scores = dict[str, list[np.ndarray]]  # search -> f64[worlds, levels] for each meta-seed


def pooled(runs: np.ndarray) -> np.ndarray:
    """The IQM of all meta-seeds together, of scores f64[..., K, worlds, levels]."""
    return statistics.iqm(runs.reshape((*runs.shape[:-3], -1, runs.shape[-1])))


def average(runs: np.ndarray) -> np.ndarray:
    return runs.mean((-3, -2, -1))


def gain(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return average(ours) - average(theirs)


def better(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The probability that an agent of one gets more than an agent of the other in the same world, on any level."""
    sides = (np.moveaxis(x, -3, -2).reshape((*x.shape[:-3], x.shape[-2], -1)) for x in (ours, theirs))
    return statistics.probability_of_improvement(*sides)


def judge(found: Sequence[np.ndarray], began: Sequence[np.ndarray], a2c: np.ndarray) -> dict[str, Any]:
    """What one search came to, of scores [worlds, levels] for each of its meta-seeds."""

    def by_world(runs: Sequence[np.ndarray]) -> dict[str, statistics.Interval]:
        return {world: statistics.over_runs(pooled, [x[[i]] for x in runs]) for i, world in enumerate(HELD_OUT)}

    return {
        "iqm": statistics.over_runs(pooled, found),
        "iqm_by_world": by_world(found),
        "iqm_by_meta_seed": [float(statistics.iqm(x)) for x in found],
        "began_iqm": statistics.over_runs(pooled, began),
        "began_iqm_by_world": by_world(began),
        "gain_over_its_beginning": statistics.over_runs(average, [x - y for x, y in zip(found, began, strict=True)]),
        "gain_over_a2c": statistics.over_runs(average, [x - a2c for x in found]),
        "scores": [x.round(4).tolist() for x in found],
        "began_scores": [x.round(4).tolist() for x in began],
    }


def compare(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> dict[str, Any]:
    return {
        "gain": statistics.over_runs(gain, ours, theirs),
        "gain_in_iqm": statistics.over_runs(lambda x, y: pooled(x) - pooled(y), ours, theirs),
        "probability_of_improvement": statistics.over_runs(better, ours, theirs),
    }


def statistics_of(found: Scores, began: Scores, a2c: np.ndarray, records: dict[str, list[Any]]) -> dict[str, Any]:
    """The statistics of a report, of scores [worlds, levels] by search and meta-seed."""
    return {
        "intervals": "two levels: meta-seeds, then levels",
        "a2c_scores": a2c.round(4).tolist(),
        "searches": {
            name: judge(found[name], began[name], a2c)
            | {"env_steps": [record.get("env_steps") for record in records[name]], "records": records[name]}
            for name in found
        },
        "comparisons": {
            f"{ours} over {theirs}": compare(found[ours], found[theirs])
            for ours, theirs in itertools.combinations(found, 2)
        },
    }


def restate(report: dict[str, Any], a2c: np.ndarray) -> dict[str, Any]:
    """The same report with its statistics made again from its scores; `a2c` [worlds, levels] is not in old reports."""
    searches = report["searches"]
    found, began = (
        {name: [np.array(x) for x in each[kind]] for name, each in searches.items()}
        for kind in ("scores", "began_scores")
    )
    return report | statistics_of(found, began, a2c, {name: each["records"] for name, each in searches.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("searches", nargs="*", help="name=run,run,...")
    parser.add_argument("--restate", action="store_true", help="make the statistics in --out again from its scores")
    parser.add_argument("--updates", type=int, default=250, help="of each agent")
    parser.add_argument(
        "--cells", type=Path, default=ROOT / "runs/worlds", help="what is done already is not done again"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/worlds.json")
    args = parser.parse_args()
    if bool(args.searches) == args.restate:
        parser.error("give searches as name=run,run,... or --restate, and not both.")
    before = json.loads(args.out.read_text()) if args.restate else {}
    if before and before["updates"] != args.updates:
        parser.error(f"{args.out} is of {before['updates']} updates: give --updates {before['updates']}.")
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
    if args.restate:
        recorded = np.array([before["a2c"]["unit"][world] for world in HELD_OUT])
        if not np.allclose(unit[:, 0], recorded, rtol=1e-2):
            raise SystemExit(
                f"A2C comes to {unit[:, 0]}, and came to {recorded} in {args.out}: train all searches again."
            )
        report = restate(before, raw("a2c") / recorded[:, None]) | {"restated": provenance()}
    else:
        report = {
            **provenance(),
            "levels": SEEDS,
            "updates": args.updates,
            "a2c": {
                "unit": dict(zip(HELD_OUT, unit[:, 0].tolist(), strict=True)),
                "iqm_by_world": dict(zip(HELD_OUT, map(statistics.iqm_interval, a2c), strict=True)),
                "iqm": statistics.iqm_interval(a2c),
            },
        } | statistics_of(
            found, {name: [raw(fingerprint(x)) / unit for x in began[name]] for name in began}, a2c, records
        )
    args.out.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    for name, each in report["searches"].items():
        print(f"{name}: {each['iqm']:.2f}, began {each['began_iqm']:.2f}, meta-seeds {each['iqm_by_meta_seed']}")
        print(f"  environment steps of each search: {each['env_steps']}")
    for name, each in report["comparisons"].items():
        print(f"{name}: {each['gain']:.2f} in mean, {each['gain_in_iqm']:.2f} in IQM")


if __name__ == "__main__":
    main()
