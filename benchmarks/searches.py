"""Every way of searching on one problem: `python -m benchmarks.searches`; resumable, an hour for each seed on two idle cores.

The problem is a drift, from PPO on, for Breakout, SpaceInvaders and CartPole in lives of 2^15 to 2^16 environment steps. Searches
whose lives roll on (rolling evolution, population-based training) have lives of 2^16 steps. Every method has the same number of
environment steps. Along the way the mean of each search trains 16 agents in each environment, on
tasks and keys that no candidate had. The score is the mean over environments of their mean return divided by that of PPO (the
mean of generation 0, in the same tasks). Steps of these evaluations are not part of the budget.

Runs are kept in runs/searches. Writes benchmarks/results/searches.json and searches.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import discover
from benchmarks.record import ROOT, provenance
from discover.agents.setups import MINATAR
from discover.plots.style import cycle, legend
from discover.runs.store import write_text
from discover.searches.config import SearchConfig
from discover.searches.evolution import EvolutionConfig
from discover.searches.families import LPOConfig, SoftClipConfig
from discover.searches.family import ObjectiveConfig
from discover.searches.map_elites import MapElitesConfig
from discover.searches.metagrad import MetaGradConfig
from discover.searches.pbt import PBTConfig
from discover.searches.problem import Problem
from discover.searches.program_family import ProgramConfig
from discover.searches.programs import ProgramsConfig
from discover.searches.recipe import Recipe
from discover.searches.rolling_search import RollingConfig

BUDGET, EVALUATIONS, SEEDS = 24_000_000, 6, 3
CLIP, NETWORK = SoftClipConfig(), LPOConfig(width=32)
PROBLEM = Recipe(
    envs=("Breakout-MinAtar", "SpaceInvaders-MinAtar", "CartPole-v1"),
    total_steps=2**15,
    longest_steps=2**16,
    evaluation_seeds=16,
    checkpoint_every=1,
    exported="last",
    agent=MINATAR.agent,
    loss=MINATAR.loss,
)
ES = EvolutionConfig(population=16)
GRADIENT = MetaGradConfig(members=4, window=2, learning_rate=0.03, entropy_coef=0.0)
METHODS: dict[str, tuple[ObjectiveConfig, SearchConfig]] = {
    "Open-ES, soft clip": (CLIP, replace(ES, shared_keys="pair", shaping="pairwise", sigma=0.3, learning_rate=0.1)),
    "CMA-ES, soft clip": (CLIP, replace(ES, strategy="CMA_ES", sigma=0.2)),
    "CMA-ES with racing, soft clip": (CLIP, replace(ES, strategy="CMA_ES", sigma=0.2, lives=4, racing=0.5)),
    "SNES, soft clip": (CLIP, replace(ES, strategy="SNES", sigma=0.2)),
    "random search, soft clip": (CLIP, replace(ES, strategy="RandomSearch", sigma=0.3, lives=4, racing=0.5)),
    "meta-gradient, soft clip": (CLIP, GRADIENT),
    "Open-ES, network": (NETWORK, replace(ES, sigma=0.01, learning_rate=0.0015)),
    "meta-gradient, network": (NETWORK, replace(GRADIENT, learning_rate=1e-3)),
    "rolling evolution, soft clip": (CLIP, RollingConfig(population=16, sigma=0.3, learning_rate=0.1)),
    "population-based training, soft clip": (CLIP, PBTConfig(population=16, interval=2, sigma=0.1, start_sigma=0.3)),
    "MAP-Elites, soft clip": (CLIP, MapElitesConfig(population=16, start_sigma=0.3)),
    "regularised evolution, programs": (ProgramConfig(), ProgramsConfig(children=15)),
}


def recipe_of(method: str, seed: int, budget: int) -> Recipe:
    """The recipe of a method, with as many generations as the budget of environment steps allows."""
    objective, search = METHODS[method]
    recipe = replace(PROBLEM, name="searches", objective=objective, search=search, seed=seed)
    if isinstance(search, RollingConfig | PBTConfig):
        recipe = replace(recipe, total_steps=PROBLEM.longest_steps, longest_steps=None)
    updates = search.build(Problem(recipe)).updates_per_step
    generations = max(1, round(budget / (updates * recipe.agent.steps_per_update)))
    return replace(recipe, generations=generations, evaluate_every=max(1, generations // EVALUATIONS))


def curve(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """By evaluated generation: environment steps and seconds of the search, and the score."""
    first = rows[0]
    found, seconds = [], 0.0
    for row in rows:
        seconds += row["seconds"]
        if "evaluation" in row:
            ratios = [np.mean(row["evaluation"][env]) / np.mean(start) for env, start in first["evaluation"].items()]
            found.append(
                {
                    "generation": row["generation"],
                    # Evaluations have the same tasks, so each takes the steps of the first.
                    "env_steps": row["env_steps"] - (1 + len(found)) * first["env_steps"],
                    "seconds": round(seconds, 1),  # with its evaluations
                    "score": round(float(np.mean(ratios)), 4),
                }
            )
    return found


def figure_of(curves: Mapping[str, list[list[dict[str, float]]]]) -> Figure:
    """The score of each method against environment steps: a thin line for each seed, a thick one for their mean."""
    figure = Figure(figsize=(8.5, 4.8), layout="constrained")
    axis = figure.subplots()
    for colour, (method, seeds) in zip(cycle(len(curves)), curves.items(), strict=True):
        lines = [([x["env_steps"] for x in each], [x["score"] for x in each]) for each in seeds]
        for x, y in lines:
            axis.plot(x, y, color=colour, linewidth=0.7, alpha=0.5)
        grid = np.linspace(0, min(x[-1] for x, _ in lines), 50)
        axis.plot(
            grid, np.mean([np.interp(grid, x, y) for x, y in lines], axis=0), color=colour, linewidth=2, label=method
        )
    axis.axhline(1.0, color="0.5", linewidth=0.8, linestyle="--")
    axis.set(xlabel="environment steps of the search", ylabel="return on unseen lives / PPO's")
    axis.grid(alpha=0.25)
    legend(axis, f"mean of {max(map(len, curves.values()))} seeds; thin: each")
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD", help=", ".join(METHODS)
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help="meta-seeds, from 0")
    parser.add_argument("--budget", type=int, default=BUDGET, help="environment steps of a search")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/searches")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    args = parser.parse_args()
    curves: dict[str, list[list[dict[str, float]]]] = {}
    for seed in range(args.seeds):
        for method in args.methods:
            place = args.runs / f"{method.replace(', ', '_').replace(' ', '-')}_{args.budget}_{seed}"
            result = discover.meta_train(recipe_of(method, seed, args.budget), place)
            curves.setdefault(method, []).append(curve(result.rows))
            print(f"{method}, seed {seed}: score {curves[method][-1][-1]['score']:.3f}", flush=True)
            report = provenance() | {"budget": args.budget, "curves": curves}
            write_text(args.out / "searches.json", json.dumps(report, indent=1) + "\n")
            figure_of(curves).savefig(args.out / "searches.png", dpi=120)
    return 0


if __name__ == "__main__":
    sys.exit(main())
