"""Recurrent agents where one observation does not say the state: `python -m benchmarks.memory`; ten minutes on two idle cores.

MemoryChain of bsuite with 20 steps between the bit and the answer: the right answer has a return of 1, the wrong one of -1.
CartPole without velocities: a return of 500 is the most. PPO trains a feed-forward network, a GRU and a minGRU
(discover/agents/recurrent.py) with the same layers, steps and learning rates. Beside the returns the report has the environment
steps a second of each, all in one run.

Writes benchmarks/results/memory.json and memory.png.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from gymnax.environments.bsuite import MemoryChain
from gymnax.environments.classic_control import CartPole
from gymnax.environments.spaces import Box
from matplotlib.figure import Figure

import discover
from benchmarks.record import ROOT, provenance
from discover.agents.config import AgentConfig
from discover.plots.style import cycle
from discover.results import statistics
from discover.runs.store import write_text

SEEDS, SEED, EVALUATIONS = 8, 83_000, 16
NETWORKS = ("mlp", "gru", "mingru")
LENGTH = 20


class PositionCartPole(CartPole):
    """CartPole whose observation is the position of the cart and the angle of the pole."""

    def get_obs(self, state, params=None, key=None):
        return super().get_obs(state)[np.array([0, 2])]

    def observation_space(self, params):
        high = np.array([4.8, 0.418], np.float32)  # twice what ends an episode, as in CartPole
        return Box(-high, high, (2,), np.float32)


class LongMemoryChain(MemoryChain):
    """MemoryChain with `LENGTH` steps between the bit and the answer."""

    @property
    def default_params(self):
        return super().default_params.replace(memory_length=LENGTH)


TASKS: dict[str, tuple[str, int]] = {
    "MemoryChain, 20 steps": ("benchmarks.memory:LongMemoryChain", 524_288),
    "CartPole without velocities": ("benchmarks.memory:PositionCartPole", 1_048_576),
}
AGENT = AgentConfig(num_envs=32, num_steps=64, num_minibatches=4, num_epochs=4, learning_rate=1e-3, hidden=(64, 64))


def train(env: str, steps: int, network: str, seeds: int) -> dict[str, Any]:
    agent = discover.AgentConfig(**(vars(AGENT) | {"network": network}))
    life: dict[str, Any] = {"env": env, "agent": agent, "num_seeds": seeds, "num_evals": EVALUATIONS}
    discover.train("ppo", **life, total_steps=EVALUATIONS * agent.steps_per_update, seed=SEED)  # compiles
    began = time.monotonic()
    found = discover.train("ppo", **life, total_steps=steps, seed=SEED)
    seconds = time.monotonic() - began
    return {
        "final": statistics.iqm_interval(found.returns[:, -1]),
        "final_returns": found.returns[:, -1].round(3).tolist(),
        "env_steps": found.env_steps.tolist(),
        "returns": found.returns.mean(0).round(3).tolist(),
        "steps_per_second": round(steps * seeds / seconds),
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure = Figure(figsize=(4.5 * len(tasks), 3.5), layout="constrained")
    for axis, task in zip(np.atleast_1d(figure.subplots(1, len(tasks))), tasks, strict=True):
        for colour, network in zip(cycle(len(NETWORKS)), NETWORKS, strict=True):
            for row in rows:
                if (row["task"], row["network"]) == (task, network):
                    axis.plot(row["env_steps"], row["returns"], color=colour, label=network)
        axis.set(title=task, xlabel="environment steps", ylabel="mean return")
        axis.grid(alpha=0.25)
    axis.legend()
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for task in args.tasks:
        env, steps = TASKS[task]
        for network in args.networks:
            row = train(env, steps, network, args.seeds)
            rows.append({"task": task, "env": env, "total_steps": steps, "network": network} | row)
            print(f"{task}, {network}: {row['final']:.2f}, {row['steps_per_second']:,} steps/s", flush=True)
            report = provenance() | {"seeds": args.seeds, "seed": SEED, "agent": vars(AGENT), "rows": rows}
            write_text(args.out / "memory.json", json.dumps(report, indent=1, default=lambda x: x._asdict()) + "\n")
            draw(rows, args.out / "memory.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
