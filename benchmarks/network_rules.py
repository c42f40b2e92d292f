"""LPGs with network agents beside A2C: `python -m benchmarks.network_rules RULE ...`; again to continue.

A RULE is a name, a file or a directory of a run. Every rule and A2C have the same agents, one step of Adam per rollout of
64 x 20, with rewards divided by the deviation of their discounted sum. The learning rate is tuned for each of them and each
environment: of `RATES` the one whose agents return most with seeds that are not used again.

Trained cells are kept in runs/network-rules. Writes benchmarks/results/network-rules.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import discover
from benchmarks.record import ROOT, provenance
from discover.agents.objectives import identity, resolve_objective
from discover.agents.setups import SHUFFLED_GRID
from discover.results import statistics
from discover.runs.store import write_text

ENVS = {"CartPole-v1": 131_072, **{f"{name}-MinAtar": 262_144 for name in ("Breakout", "Asterix", "SpaceInvaders")}}
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
SEEDS, SEED = 10, 84_000
TUNING_SEEDS, TUNING_SEED = 4, 85_000
BASELINE = "a2c"


def returns(cells: Path, name: str, env: str, rate: float, seeds: int, seed: int) -> np.ndarray:
    """f64[seeds]: mean returns of the last twentieth of training, from disk where they are there."""
    objective = resolve_objective(name)
    life = {"objective": identity(objective), "env": env, "total_steps": ENVS[env]}
    life |= {"learning_rate": rate, "num_seeds": seeds, "seed": seed}
    digest = hashlib.sha256(json.dumps(life, sort_keys=True).encode()).hexdigest()[:16]
    path = cells / f"{digest}.json"
    if not path.exists():
        agent = replace(SHUFFLED_GRID.agent, normalise_reward=True, learning_rate=rate)
        found = discover.train(
            objective, env, total_steps=ENVS[env], num_seeds=seeds, seed=seed, agent=agent, num_evals=20
        )
        cells.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(life | {"returns": np.float64(found.returns[:, -1]).tolist()}, indent=1) + "\n")
    return np.asarray(json.loads(path.read_text())["returns"])


def row_of(cells: Path, name: str, env: str) -> dict[str, Any]:
    tuned = {
        rate: float(statistics.iqm(returns(cells, name, env, rate, TUNING_SEEDS, TUNING_SEED)[None])) for rate in RATES
    }
    rate = max(tuned, key=lambda rate: tuned[rate])
    final = returns(cells, name, env, rate, SEEDS, SEED)
    return {
        "env": env,
        "total_steps": ENVS[env],
        "objective": name,
        "learning_rate": rate,
        "IQM by learning rate": {f"{rate:g}": round(value, 2) for rate, value in tuned.items()},
        "iqm": statistics.iqm_interval(final),
        "final_returns": final.round(3).tolist(),
    }


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with P(a seed returns more than one of A2C)."""
    base = {row["env"]: np.asarray(row["final_returns"]) for row in rows if row["objective"] == BASELINE}
    for row in rows:
        if row["objective"] != BASELINE:
            pair = np.asarray(row["final_returns"]), base[row["env"]]
            row[f"better than {BASELINE}"] = statistics.interval(statistics.probability_of_improvement, *pair)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rules", nargs="+", help="names, files or directories of runs")
    parser.add_argument("--cells", type=Path, default=ROOT / "runs/network-rules", help="where trained cells are kept")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/network-rules.json")
    args = parser.parse_args(argv)
    names = list(dict.fromkeys((BASELINE, *args.rules)))
    try:
        identities = {name: identity(resolve_objective(name)) for name in names}
    except (ValueError, OSError) as error:
        print(f"benchmarks.network_rules: {error}", file=sys.stderr)
        return 2
    rows: list[dict[str, Any]] = []
    for env in ENVS:
        for name in names:
            rows.append(row_of(args.cells, name, env))
            print(
                f"{env}: {name} {rows[-1]['iqm']:.2f} at a learning rate of {rows[-1]['learning_rate']:g}", flush=True
            )
        report = provenance() | {"seeds": SEEDS, "seed": SEED, "objectives": identities, "rows": compared(rows)}
        write_text(args.out, json.dumps(report, indent=1, default=lambda x: x._asdict()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
