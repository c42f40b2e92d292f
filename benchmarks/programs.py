"""What the interpreter of programs costs, against compiling each program: `python -m benchmarks.programs`; three minutes.

A generation of a search for programs trains agents with objectives of different structure. Two ways to do so:

    interpreted   all of them as arrays, in one compiled function (lo.InterpretedProgram)
    compiled      each as an expression of its own (lo.Program), compiled by itself

Of lives in CartPole, with the agents of the recipe `quickstart`, it measures the seconds of a generation and the seconds of a
compilation. "Compiled" runs as many copies of one program side by side, since different ones cannot run so; its cost is then a
lower bound. Both ways run in turn, several times, and the ratio is the median over the turns. A generation of n new programs
needs n compilations, and an interpreted one none after the first.

It also measures the check of the laws: `lo.verify_drift` of a program, and of an interpreted one without a new compilation.

Writes benchmarks/results/programs.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import learned_objectives as lo
from benchmarks.record import ROOT, provenance
from discover import recipes
from discover.formats import write_text
from discover.searches.problem import Problem
from discover.searches.program_checks import Checks

SATURATED = "where(A < 0, relu(log_r * A - 0.6 * tanh(log_r * A / 0.6)), relu(r1 * A - 2 * tanh(r1 * A / 2)))"
TEXTS = (
    "relu((r1 - max(min(r1, 0.2), -0.2)) * A)",
    SATURATED,
    "square(r1) * 2",
    "square(log_r * A) * 0.5",
    "where(A < 0, square(r1) * abs(A), relu(r1 * A - 0.3 * tanh(r1 * A / 0.3)))",
    "max(square(log_r), relu((r1 - max(min(r1, 0.3), -0.1)) * A))",
    "square(r1 * tanh(A)) * 1.3",
    "min(square(r1) * 5, relu((log_r - max(min(log_r, 0.2), -0.4)) * A))",
)


def seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began


def generation(recipe: Any, drifts: list[lo.Drift]) -> Callable[[], jax.Array]:
    """A function that trains agents with these drifts, which have one structure."""
    objectives = [jax.tree.map(jnp.asarray, recipe.loss.on(lo.Mirror(drift=drift))) for drift in drifts]
    problem = Problem(recipe, objectives[0])
    candidates = jax.tree.map(lambda *xs: jnp.stack(xs)[:, None], *objectives)
    return lambda: problem.fitness(candidates, problem.key("life", 0))


def lives(steps: int, turns: int) -> dict[str, Any]:
    recipe = replace(recipes.quickstart(), objective="ppo", total_steps=steps)
    ways = {
        "interpreted": generation(recipe, [lo.InterpretedProgram.of(text) for text in TEXTS]),
        "compiled": generation(recipe, [lo.Program.parse(SATURATED)] * len(TEXTS)),
    }
    first = {name: seconds(run) for name, run in ways.items()}
    found = {name: [] for name in ways}
    for _ in range(turns):
        for name, run in ways.items():
            found[name].append(seconds(run))
    ratios = np.divide(found["interpreted"], found["compiled"])
    return {
        "seconds of a generation": {name: float(np.median(each)) for name, each in found.items()},
        "seconds of a compilation": {name: first[name] - float(np.median(found[name])) for name in ways},
        "ratio, interpreted to compiled": {"median": float(np.median(ratios)), "all": ratios.tolist()},
    }


def laws() -> dict[str, float]:
    """Seconds of a check, the median over the programs."""
    programs = [lo.InterpretedProgram.of(text) for text in TEXTS]
    checks = Checks(programs[0])
    checks.broken_law(programs[0])
    return {
        "verify_drift": float(np.median([seconds(lambda p=p: lo.verify_drift(p.program())) for p in programs])),
        "without compilation": float(np.median([seconds(lambda p=p: checks.broken_law(p)) for p in programs])),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_480, help="environment steps of a life")
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    if args.turns < 1 or args.steps < 2048:
        parser.error("there must be at least 1 turn, and at least 2048 steps in a life.")
    report = {"programs": TEXTS, "steps": args.steps, "lives": lives(args.steps, args.turns), "laws": laws()}
    write_text(ROOT / "benchmarks/results/programs.json", json.dumps(provenance() | report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
