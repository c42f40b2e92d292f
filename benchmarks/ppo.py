"""What our PPO reaches, where the literature or a peer says what it should: `python -m benchmarks.ppo`.

Long runs, not tests: the numbers are recorded in benchmarks/results with the machine and versions they came from.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

import discover
from benchmarks.record import provenance
from discover.results.statistics import iqm_interval

SEEDS = 8
# environment -> (environment steps a seed, what should hold of the final return, and of which statistic)
CLAIMS = {
    "CartPole-v1": (500_000, 475.0, "mean"),
    "Breakout-MinAtar": (1_000_000, 22.0, "IQM"),
    "Pendulum-v1": (1_000_000, -250.0, "mean"),
    "brax/inverted_pendulum@spring": (2_000_000, 950.0, "mean"),
}


def measure(env: str, seed: int) -> dict:
    total_steps, goal, statistic = CLAIMS[env]
    began = time.monotonic()
    result = discover.train("ppo", env, total_steps=total_steps, num_seeds=SEEDS, seed=seed, num_evals=50)
    final = result.returns[:, -1]
    interval = iqm_interval(final)
    reached = float(final.mean()) if statistic == "mean" else interval.value
    return {
        "env": env,
        "total_steps": int(result.env_steps[-1]),
        "seed": seed,
        "statistic": statistic,
        "reached": round(reached, 2),
        "goal": goal,
        "holds": reached >= goal,
        "iqm": [round(x, 2) for x in interval],
        "final_returns": np.round(final, 2).tolist(),
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--envs", nargs="+", choices=CLAIMS, default=list(CLAIMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ppo.json"))
    args = parser.parse_args()
    rows = []
    for env in args.envs:
        rows.append(measure(env, args.seed))
        print(json.dumps(rows[-1]), flush=True)
    args.out.write_text(json.dumps({**provenance(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
