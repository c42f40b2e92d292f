"""Does this code still learn what was recorded? `python -m benchmarks.again` trains cells of results/returns.json once more.

For every change that is to make lives quicker and nothing else: rounding may part two lives of one seed within a few updates, so
seeds are not compared one by one. Held side by side are the IQMs of ten seeds, and the probability that a seed trained today
returns more than one of those recorded, which is a half if nothing changed. Each comparison has an interval of 95%, so that of
twenty one is expected to miss the half.
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np

import discover
from benchmarks.record import ROOT, provenance
from benchmarks.returns import SEED, SEEDS
from discover.agents.setups import setup_of, usual_setup
from discover.results.statistics import Interval, interval, iqm_interval, probability_of_improvement

RESULTS = ROOT / "benchmarks/results"
CELLS = {
    "CartPole-v1": ("ppo", "dpo", "lpo_2026_11"),
    "Acrobot-v1": ("ppo",),
    "Pendulum-v1": ("ppo",),
    "brax/inverted_pendulum@spring": ("ppo",),
    "Breakout-MinAtar": ("ppo", "dpo", "lpo_2026_11", "ta_lpo_2026_11"),
    "Freeway-MinAtar": ("ppo", "lpo_2026_11"),
    "Asterix-MinAtar": ("ppo",),
    "SpaceInvaders-MinAtar": ("ppo", "dpo"),
}


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0; 1 if today's returns are others, over all cells together, or no cell can be compared."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.again", description=__doc__)
    parser.add_argument("--envs", nargs="+", choices=CELLS, default=list(CELLS))
    args = parser.parse_args(argv)
    recorded = json.loads((RESULTS / "returns.json").read_text())["groups"]["drifts"]
    before = {(row["env"], row["objective"]): row for row in recorded["rows"]}
    rows = []
    for env in args.envs:
        usual = usual_setup(env)
        if setup_of(recorded["setups"][env]) != usual:
            print(
                f"{env}: its usual agents are others than those recorded, so there is nothing to compare.",
                file=sys.stderr,
            )
            continue
        for objective in CELLS[env]:
            rows.append(compare(env, objective, before[env, objective]))
            print(describe(rows[-1]), flush=True)
    if not rows:
        return 1
    together = over_all(rows)
    head = provenance() | {"seeds": SEEDS, "seed": SEED, "recorded": recorded["trained_by"]}
    if args.envs == list(CELLS):
        (RESULTS / "again.json").write_text(json.dumps(head | {"rows": rows, "over_all": together}, indent=1) + "\n")
    print(f"over all cells: a seed of today's returns more with probability {Interval(*together):.2f}")
    return int(not together[1] <= 0.5 <= together[2])


def compare(env: str, objective: str, row: dict, agent: discover.AgentConfig | None = None) -> dict:
    """Seeds trained today, of the usual agent or of another, and the row that was recorded."""
    result = discover.train(objective, env, total_steps=row["total_steps"], num_seeds=SEEDS, seed=SEED, agent=agent)
    now, then = result.returns[:, -1].astype(float), np.array(row["final_returns"], float)
    return {
        "env": env,
        "objective": objective,
        "total_steps": row["total_steps"],
        "iqm": list(iqm_interval(now)),
        "iqm_recorded": row["iqm"],
        "better": list(interval(probability_of_improvement, now, then)),
        "final_returns": np.round(now, 3).tolist(),
        "final_returns_recorded": row["final_returns"],
    }


def over_all(rows: list[dict]) -> list[float]:
    now, then = (np.array([row[name] for row in rows]) for name in ("final_returns", "final_returns_recorded"))
    return list(interval(probability_of_improvement, now, then))


def describe(row: dict) -> str:
    now, then, better = (Interval(*row[name]) for name in ("iqm", "iqm_recorded", "better"))
    return f"{row['env']:32} {row['objective']:7} {then:.3g} recorded, {now:.3g} now; P(now better) {better:.2f}"


if __name__ == "__main__":
    sys.exit(main())
