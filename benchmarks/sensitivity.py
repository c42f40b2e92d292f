"""Which numbers around PPO matter, in which game and at which length of life? `python -m benchmarks.sensitivity`; ten minutes.

Candidates are PPO with all sixteen numbers of a soft clip and its schedules (`learned_objectives.SoftClip`,
`ScheduledMirror`) drawn from N(0, 0.35^2). Each trains one agent in each game. The logarithm of its final return, in standard
deviations over the candidates, is regressed on the numbers in units of 0.35, and on the absolute values of those of which only
the absolute value counts:

    log F_i = c_0 + sum_j c_j z_ij + sum_k d_k |z_ik| + e_i

It reports every coefficient with its standard error. Positive: a larger number returns more. A positive effect of `lambda` is one
of a larger 1 - lambda.

Writes benchmarks/results/sensitivity.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from benchmarks.record import ROOT, provenance
from discover import recipes
from discover.agents.setups import usual_setup
from discover.runs.store import write_text
from discover.searches.families import SoftClipConfig
from discover.searches.problem import Problem
from learned_objectives import mirror, soft_clip

ENVS = ("Breakout-MinAtar", "SpaceInvaders-MinAtar", "Asterix-MinAtar")
TRIALS = ((65_536, 128), (262_144, 96))  # environment steps of a life, candidates
SIGMA, SEED = 0.35, 77
NAMES = (
    *(f"{number} (A {sign} 0)" for sign in (">", "<") for number in soft_clip.NUMBERS),
    *(name.removeprefix("gae_") for name in mirror.NUMBERS),
)
EVEN = [j for j, name in enumerate(NAMES) if name.startswith(("softness", "back_slope"))]  # only |number| counts


def problem_of(objective: SoftClipConfig, envs: tuple[str, ...], steps: int) -> Problem:
    """Usual agents in lives of one length. ValueError where environments have different ones."""
    setup, *others = {usual_setup(env) for env in envs}
    if others:
        raise ValueError(f"the agents of a problem have one setup, and those of {', '.join(envs)} have several.")
    return Problem(
        replace(
            recipes.soft_clip_small(),
            objective=objective,
            agent=setup.agent,
            loss=setup.loss,
            envs=envs,
            total_steps=steps,
            longest_steps=None,
            rate_spread=1.0,
            constant_rates=0.0,
        )
    )


def draws(problem: Problem, count: int, key: jax.Array) -> list[jax.Array]:
    """For each leaf of the template, standard normal numbers [C, ...]."""
    leaves = jax.tree.leaves(problem.template)
    keys = jax.random.split(key, len(leaves))
    return [jax.random.normal(key, (count, *x.shape)) for key, x in zip(keys, leaves, strict=True)]


def returns(problem: Problem, drawn: list[jax.Array], key: jax.Array) -> np.ndarray:
    """f64[C, E]: the final return of one life of each candidate, template + SIGMA drawn, in each game."""
    leaves, form = jax.tree.flatten(problem.template)
    candidates = form.unflatten([(x + SIGMA * z)[:, None] for x, z in zip(leaves, drawn, strict=True)])
    return np.asarray(problem.fitness(candidates, key, shared_keys="group"), np.float64)[:, 0]


def measure(steps: int, count: int, envs: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(numbers in units of SIGMA f64[C, 16], final returns f64[C, E])."""
    problem = problem_of(SoftClipConfig(schedules=True), envs, steps)
    drawn = draws(problem, count, jax.random.key(SEED))
    numbers = np.concatenate([np.asarray(z, np.float64).reshape(count, -1) for z in drawn], axis=1)
    return numbers, returns(problem, drawn, problem.key("step", 0))


def effects(z: np.ndarray, returned: np.ndarray) -> dict[str, Any]:
    """The regression of f64[C] returns on f64[C, 16] numbers."""
    known = np.isfinite(returned)
    z, y = z[known], np.log(np.maximum(returned[known], 1e-3))
    y = (y - y.mean()) / y.std()
    x = np.column_stack([np.ones(len(y)), z, np.abs(z[:, EVEN])])
    beta = np.linalg.lstsq(x, y, rcond=None)[0]
    residual = y - x @ beta
    error = np.sqrt(np.diag(np.linalg.inv(x.T @ x)) * (residual @ residual) / (len(y) - x.shape[1]))
    names = (*NAMES, *(f"|{NAMES[j]}|" for j in EVEN))
    return {
        "mean": round(float(returned[known].mean()), 3),
        "explained": round(1 - float(residual @ residual) / len(y), 3),
        "effects": {
            name: {"effect": round(float(b), 3), "error": round(float(e), 3)}
            for name, b, e in zip(names, beta[1:], error[1:], strict=True)
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=list(ENVS))
    args = parser.parse_args()
    if len({usual_setup(env) for env in args.envs}) > 1:
        parser.error("the environments must have agents of one setup.")
    report: dict[str, Any] = provenance() | {"seed": SEED, "sigma": SIGMA, "rows": []}
    for steps, count in TRIALS:
        z, returned = measure(steps, count, tuple(args.envs))
        for env, each in zip(args.envs, returned.T, strict=True):
            report["rows"].append({"env": env, "total_steps": steps, "candidates": count} | effects(z, each))
            strong = {n: e for n, e in report["rows"][-1]["effects"].items() if abs(e["effect"]) > 2.5 * e["error"]}
            print(f"{env}, {steps:,} steps: " + ", ".join(f"{n} {e['effect']:+.2f}" for n, e in strong.items()))
    write_text(ROOT / "benchmarks/results/sensitivity.json", json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
