"""Do discovered update rules hold up in worlds they never saw? `python -m benchmarks.worlds lpg=runs/a,runs/b,runs/c ...`

Meta-test of searches over LPG: every objective trains fresh agents on held-out levels, with the hyperparameters of the tabular
agent for all, and A2C and the unsearched rule beside them. A score is an agent's final return in units of A2C's mean on the same
levels, on which its keys are the same too. Several meta-seeds of one search are given with commas between them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np

import discover
import learned_objectives as lo
from benchmarks.record import ROOT, provenance
from discover.evaluate import iqm_interval

HELD_OUT = ("gridworld/small", "gridworld/medium", "gridworld/dense", "gridworld/sparse", "gridworld/long")
SEEDS = 16  # levels and agents of each world
SEED = 77_000  # far from the seeds of any search
UPDATES = 250


def returns(objective: lo.Objective | str, env: str) -> np.ndarray:
    """f32[SEEDS]: final training returns on the held-out levels of a world; an agent that diverged has none."""
    found = discover.train(objective, env, total_steps=UPDATES * 1280, num_seeds=SEEDS, seed=SEED, num_evals=5)
    return found.returns[:, -1]


def main() -> None:
    searches = dict(argument.split("=", 1) for argument in sys.argv[1:])
    report = {**provenance(), "seeds": SEEDS, "updates": UPDATES, "worlds": {}}
    for env in HELD_OUT:
        a2c = returns("a2c", env)
        unit = max(float(np.mean(a2c)), 1e-6)
        untrained = np.stack([returns(lo.LPG.groove(jax.random.key(i), hidden=64), env) for i in range(2)])
        rows = {"a2c": a2c[None], "unsearched": untrained}
        rows |= {name: np.stack([returns(run, env) for run in runs.split(",")]) for name, runs in searches.items()}
        report["worlds"][env] = {
            name: {
                "returns": values.tolist(),
                "normalised_iqm": list(iqm_interval(values.reshape(-1) / unit)),
            }
            for name, values in rows.items()
        }
        print(env, {name: str(iqm_interval(v.reshape(-1) / unit)) for name, v in rows.items()}, flush=True)
    Path(ROOT / "benchmarks/results/worlds.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
