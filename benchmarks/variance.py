"""How much of a fitness's variance the task explains: `python -m benchmarks.variance`.

Candidates near PPO and PPO itself train in the same tasks (length of life, learning rate, annealing) with the same keys, as in
`soft_clip_small`. Per environment it reports, with bootstrap intervals over tasks,

    control variate   1 - Var(F - F_ppo) / Var(F): the share of a candidate's variance over tasks that PPO's life on the same
                      task and key removes
    best weight       the same for F - b F_ppo with the b that removes most
    shared tasks      1 - Var(F_i - F_j) / (Var(F_i) + Var(F_j)): how much smaller the variance of F_i - F_j is than with
                      independent tasks. Subtracting F_ppo from both leaves F_i - F_j unchanged

Tasks in which an agent diverged are left out.

Writes benchmarks/results/variance.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.record import ROOT, provenance
from discover import recipes
from discover.results.statistics import Interval
from discover.runs.store import write_text
from discover.searches.problem import Problem

SEED, SIGMA, SAMPLES = 71_000, 0.2, 2000


def fitness(envs: tuple[str, ...], candidates: int, tasks: int) -> np.ndarray:
    """f64[E, 1 + candidates, tasks]: PPO first."""
    problem = Problem(replace(recipes.soft_clip_small(), envs=envs, seed=SEED))
    start = problem.template
    noise = SIGMA * jax.random.normal(jax.random.key(SEED), (candidates, *start.drift.numbers.shape))
    numbers = start.drift.numbers + jnp.concatenate([jnp.zeros_like(noise[:1]), noise])
    stacked = jax.tree.map(lambda x: jnp.broadcast_to(x, (1 + candidates, 1, *jnp.shape(x))), start)
    stacked = stacked.replace(drift=stacked.drift.replace(numbers=numbers[:, None]))
    found = []
    for task in range(tasks):
        found.append(np.asarray(problem.fitness(stacked, problem.key("life", task)), np.float64)[:, 0])
        print(f"task {task + 1}/{tasks}", flush=True)
    return np.moveaxis(np.stack(found), 0, -1).swapaxes(0, 1)


def removed(f: np.ndarray) -> dict[str, float]:
    """The three shares of f64[1 + C, K], each the mean over candidates or pairs of them."""
    ppo, rest = f[0], f[1:]
    pairs = list(itertools.combinations(rest, 2))
    return {
        "control variate": float(np.mean([1 - np.var(x - ppo) / np.var(x) for x in rest])),
        "best weight": float(np.mean([np.corrcoef(x, ppo)[0, 1] ** 2 for x in rest])),
        "shared tasks": float(np.mean([1 - np.var(x - y) / (np.var(x) + np.var(y)) for x, y in pairs])),
    }


def shares(f: np.ndarray) -> dict[str, Interval]:
    """`removed`, with percentile intervals of 95 % over tasks drawn again."""
    rng, tasks = np.random.default_rng(0), f.shape[1]
    draws = (rng.integers(0, tasks, tasks) for _ in range(SAMPLES))
    again = [removed(f[:, draw]) for draw in draws if len(set(draw)) > 1]
    return {
        name: Interval(value, *map(float, np.percentile([each[name] for each in again], (2.5, 97.5))))
        for name, value in removed(f).items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=["Breakout-MinAtar", "SpaceInvaders-MinAtar"])
    parser.add_argument("--candidates", type=int, default=6)
    parser.add_argument("--tasks", type=int, default=24)
    args = parser.parse_args()
    if args.candidates < 2 or args.tasks < 4:
        parser.error("a variance needs at least 2 candidates and 4 tasks.")
    found = fitness(tuple(args.envs), args.candidates, args.tasks)
    report: dict[str, Any] = provenance() | {
        "seed": SEED,
        "sigma": SIGMA,
        "tasks": args.tasks,
        "candidates": args.candidates,
    }
    found = found[:, :, np.isfinite(found).all((0, 1))]
    report["removed"] = {env: shares(f) for env, f in zip(args.envs, found, strict=True)}
    report["fitness"] = {env: f.round(3).tolist() for env, f in zip(args.envs, found, strict=True)}
    text = json.dumps(report, indent=1, default=lambda x: x._asdict())
    write_text(ROOT / "benchmarks/results/variance.json", text + "\n")
    for env, each in report["removed"].items():
        print(env + ": " + ", ".join(f"{name} {share:.2f}" for name, share in each.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
