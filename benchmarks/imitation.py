"""Does an LPG taught A2C's targets train agents as A2C does? `python -m benchmarks.imitation`; ten minutes on two idle cores.

Both train the same network agents: one step of Adam per rollout of 64 x 20, rewards divided by the deviation of their discounted
sum, at each of `RATES`. The LPG has a GRU of 64 units and 16 predictions and has seen no environment
(`discover.searches.imitation`). Writes benchmarks/results/imitation.json.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import jax
import numpy as np

import discover
from benchmarks.record import ROOT, provenance
from discover.agents.setups import SHUFFLED_GRID
from discover.results import statistics
from discover.runs.store import write_text
from discover.searches import imitation
from discover.searches.families import LPGConfig

ENVS = {"CartPole-v1": 131_072, **{f"{name}-MinAtar": 262_144 for name in ("Breakout", "Asterix", "SpaceInvaders")}}
RATES = (5e-4, 2e-3)
SEEDS, SEED, TEMPLATE_SEED = 10, 81_000, 0
LPG = LPGConfig(cell="gru", hidden=64, predictions=16, see_gamma=False, start="a2c")


def main() -> int:
    lpg = LPG.template(jax.random.key(TEMPLATE_SEED), SHUFFLED_GRID.loss)
    share = float(imitation.explained(lpg, jax.random.key(TEMPLATE_SEED + 1)))
    report: dict[str, Any] = provenance() | {"seeds": SEEDS, "seed": SEED, "explained": round(share, 5), "rows": []}
    for env, steps in ENVS.items():
        for rate in RATES:
            agent = replace(SHUFFLED_GRID.agent, normalise_reward=True, learning_rate=rate)
            final = {
                name: discover.train(
                    objective, env, total_steps=steps, num_seeds=SEEDS, seed=SEED, agent=agent, num_evals=20
                ).returns[:, -1]
                for name, objective in (("a2c", "a2c"), ("lpg", lpg))
            }
            ours, theirs = (np.asarray(final[name], np.float64) for name in ("lpg", "a2c"))
            row = {"env": env, "total_steps": steps, "learning_rate": rate} | {
                name: statistics.iqm_interval(np.asarray(returns)) for name, returns in final.items()
            }
            row["better than a2c"] = statistics.interval(statistics.probability_of_improvement, ours, theirs)
            report["rows"].append(row)
            print(
                f"{env} {rate:g}: a2c {row['a2c']:.1f}, lpg {row['lpg']:.1f}, better {row['better than a2c']:.2f}",
                flush=True,
            )
            text = json.dumps(report, indent=1, default=lambda x: x._asdict())
            write_text(ROOT / "benchmarks/results/imitation.json", text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
