"""Meta-gradients of a window by reverse over reverse mode, and by forward over reverse mode: `python -m benchmarks.mixed_mode`.

Of windows of five updates in three sizes it reports, for both values of `search.differentiation`, what the compiler plans for
temporaries, and the least CPU time of several runs, both ways in turns in one process. `difference` is that of the two gradients,
relative to the norm of the first.

Writes benchmarks/results/mixed-mode.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from benchmarks.record import ROOT, provenance
from discover.agents.setups import CLASSIC, MINATAR
from discover.runs import recipes
from discover.runs.store import write_text
from discover.searches.families import SoftClipConfig
from discover.searches.metagrad import MetaGradConfig
from discover.searches.problem import Problem
from discover.searches.recipe import Recipe

MODES = ("reverse", "mixed")


def soft_clip(env: str, setup: Any, members: int) -> Recipe:
    search = MetaGradConfig(members=members, chunk=members, estimator="standard")
    family = SoftClipConfig(time_aware=True)
    return Recipe(objective=family, envs=(env,), total_steps=2**18, agent=setup.agent, loss=setup.loss, search=search)


def cases() -> dict[str, Recipe]:
    lpg = recipes.lpg_small()
    return {
        "soft clip, CartPole, 4 agents": soft_clip("CartPole-v1", CLASSIC, 4),
        "soft clip, Breakout, 1 agent": soft_clip("Breakout-MinAtar", MINATAR, 1),
        "LPG, small worlds, 8 agents": replace(lpg, search=replace(lpg.search, members=8, chunk=8)),
    }


def measured(recipe: Recipe, repeats: int) -> dict[str, Any]:
    programs, gradients, row = {}, {}, {}
    for mode in MODES:
        problem = Problem(
            replace(recipe, search=replace(recipe.search, differentiation=mode)), devices=jax.devices()[:1]
        )
        search = problem.recipe.search.build(problem)
        state = search.init()
        ((program, arguments),) = search.programs(state).values()
        compiled: Any = program.lower(*arguments).compile()
        gradients[mode] = np.asarray(ravel_pytree(compiled(*arguments)[0])[0], np.float64)
        programs[mode] = compiled, arguments
        row[mode] = {"temp_mb": compiled.memory_analysis().temp_size_in_bytes / 1e6}
    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    for _ in range(repeats):
        for mode, (compiled, arguments) in programs.items():
            began = time.process_time()
            jax.block_until_ready(compiled(*arguments))
            times[mode].append(time.process_time() - began)
    for mode in MODES:
        row[mode]["cpu_seconds"] = times[mode]
    reverse, mixed = (gradients[mode] for mode in MODES)
    return row | {
        "time": min(times["mixed"]) / min(times["reverse"]),
        "memory": row["mixed"]["temp_mb"] / row["reverse"]["temp_mb"],
        "difference": float(np.linalg.norm(mixed - reverse) / np.linalg.norm(reverse)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error("a time needs at least 1 repeat.")
    report: dict[str, Any] = provenance() | {"window": MetaGradConfig().window, "rows": {}}
    for name, recipe in cases().items():
        row = report["rows"][name] = measured(recipe, args.repeats)
        print(
            f"{name}: time x{row['time']:.2f}, memory x{row['memory']:.2f}, difference {row['difference']:.1e}",
            flush=True,
        )
    write_text(ROOT / "benchmarks/results/mixed-mode.json", json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
