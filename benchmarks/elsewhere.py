"""Our drifts in PPO agents that others wrote: `python -m benchmarks.elsewhere OBJECTIVE ... --agent rejax`, again to continue.

rejax 0.1.3 trains MinAtar agents of its own with a drift of ours as one line of its loss (benchmarks/rejax_agent.py), and Brax
0.14 agents of its own on its environments (benchmarks/brax_agent.py). Where an objective also schedules the weights around its
drift, it sets those of the agent before every update. All objectives have the same agents, seeds and numbers of steps. The
learning rate of an environment is the one of the agent's rates under which the agent's own PPO returns most, with seeds that
are not used again. Agents are judged by fresh episodes at their end.

Trained cells are kept in runs/elsewhere. The report goes to benchmarks/results/elsewhere-AGENT.json. In the shortest lives it
also has what the agent's own PPO returns, to show that PPO as a drift is the same algorithm.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import learned_objectives as lo
from benchmarks import peer_env
from benchmarks.record import ROOT, provenance
from benchmarks.returns import rows
from discover.agents.objectives import identity, resolve_objective
from discover.results import statistics
from discover.results.comparison import Comparison, Curve, Trial
from discover.runs.store import write_text

SEEDS, SEED = 10, 61_000
TUNING_SEEDS, TUNING_SEED, TUNING_STEPS = 4, 62_000, 262_144
BASELINE = "ppo"


@dataclass(frozen=True)
class Agent:
    """PPO as others wrote it."""

    about: str
    module: str  # of this project: it trains a life in that agent
    python: Callable[[], str]  # the interpreter that has it
    games: tuple[str, ...]
    steps: tuple[int, ...]  # of a life
    rates: tuple[float, ...]  # learning rates that are tried
    own: str  # what its own PPO is called in the report


AGENTS = {
    "rejax": Agent(
        "PPO of rejax 0.1.3, 64 x 128 steps, 4 epochs of 8 minibatches, Adam at a constant rate, two layers of 64",
        "benchmarks.rejax_agent",
        peer_env.python,
        ("Breakout-MinAtar", "Asterix-MinAtar", "SpaceInvaders-MinAtar", "Freeway-MinAtar"),
        (262_144, 1_048_576),
        (3e-4, 1e-3, 3e-3),
        "rejax's own PPO",
    ),
    "brax": Agent(
        "PPO of Brax 0.14, backend spring, 64 x 64 steps, 4 epochs of 8 minibatches, Adam at a constant rate, two layers of 64",
        "benchmarks.brax_agent",
        lambda: sys.executable,
        ("inverted_double_pendulum", "hopper"),
        (262_144,),
        (3e-4, 1e-3, 3e-3),
        "Brax's own PPO",
    ),
}


class Bench:
    """Trains cells in the agent of others and keeps them."""

    def __init__(self, cells: Path, agent: Agent):
        self.cells, self.agent, self.interpreter = cells.resolve(), agent, agent.python()
        self.cells.mkdir(parents=True, exist_ok=True)

    def returns(self, name: str, env: str, total_steps: int, rate: float, seeds: int, seed: int) -> np.ndarray:
        """f32[seeds]: final returns of an objective by name, file or run, from disk where they are there."""
        life = {
            "env": env,
            "total_steps": total_steps,
            "objective": "" if name == self.agent.own else self.file_of(name),
            "learning_rate": rate,
            "num_seeds": seeds,
            "seed": seed,
        }
        digest = hashlib.sha256(json.dumps(life, sort_keys=True).encode()).hexdigest()[:16]
        path = self.cells / f"{digest}.json"
        if not path.exists():
            print(f"{env}, {total_steps:,} steps, learning rate {rate:g}, {seeds} seeds: {name}", flush=True)
            write_text(path, json.dumps(life | {"returns": self.run(life), "objective": name}, indent=1) + "\n")
        return np.asarray(json.loads(path.read_text())["returns"], np.float32)

    def run(self, life: dict[str, Any]) -> list[float]:
        done = subprocess.run(
            [self.interpreter, "-W", "ignore", "-m", self.agent.module, json.dumps(life)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(
                f"{self.agent.module} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
            )
        return json.loads(done.stdout.strip().splitlines()[-1])

    def file_of(self, name: str) -> str:
        """A file of the objective, named by its numbers."""
        objective = resolve_objective(name)
        path = self.cells / "objectives" / f"{identity(objective)}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            lo.save(objective, path)
        return str(path)


def require_drift(name: str) -> None:
    """ValueError where an objective is none that these agents can train."""
    objective = resolve_objective(name)
    if type(objective) not in (lo.Mirror, lo.ScheduledMirror):  # others change more than the drift and the weights
        raise ValueError(f"an agent of others takes a drift, and {name} is a {type(objective).__name__}.")
    if objective.needs_statistics:
        raise ValueError(f"agents of others compute no statistics of their updates, and {name} reads them.")


def best_rate(bench: Bench, env: str) -> tuple[float, dict[str, float]]:
    """The learning rate under which the agent's own PPO returns most, and the IQM of each."""
    found = {
        rate: float(
            statistics.iqm(bench.returns(bench.agent.own, env, TUNING_STEPS, rate, TUNING_SEEDS, TUNING_SEED)[None])
        )
        for rate in bench.agent.rates
    }
    return max(found, key=lambda rate: found[rate]), {f"{rate:g}": round(value, 2) for rate, value in found.items()}


def report_of(comparison: Comparison, agent: Agent, rates: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What is written: rows, and P(better than PPO) over all games, for each length of life."""
    lengths = sorted({trial.total_steps for trial in comparison.curves})
    pooled: dict[str, dict[str, Any]] = {}
    for name in (agent.own, *names):
        for steps in lengths:
            shared = [c for t, c in comparison.curves.items() if t.total_steps == steps and {name, BASELINE} <= set(c)]
            if shared and name != BASELINE:
                ours, theirs = (np.stack([c[which].final for c in shared]) for which in (name, BASELINE))
                found = statistics.interval(statistics.probability_of_improvement, ours, theirs)
                pooled.setdefault(name, {})[f"{steps:,} steps, {len(shared)} games"] = found
    return provenance() | {
        "agent": agent.about,
        "seeds": SEEDS,
        "seed": SEED,
        "learning rates": rates,
        "objectives": {name: identity(resolve_objective(name)) for name in (BASELINE, *names)},
        f"better than {BASELINE}": pooled,
        "rows": rows(comparison, BASELINE),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objectives", nargs="+", help="names, files or directories of runs")
    parser.add_argument("--agent", choices=AGENTS, default="rejax")
    parser.add_argument("--games", nargs="+", help="default: those of the agent")
    parser.add_argument("--steps", nargs="+", type=int, help="environment steps of a life; default: those of the agent")
    parser.add_argument("--cells", type=Path, default=ROOT / "runs/elsewhere", help="where trained cells are kept")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/elsewhere-AGENT.json")
    args = parser.parse_args(argv)
    agent = AGENTS[args.agent]
    args.out = args.out or ROOT / f"benchmarks/results/elsewhere-{args.agent}.json"
    games, lengths = args.games or agent.games, args.steps or agent.steps
    names = [name for name in dict.fromkeys(args.objectives) if name != BASELINE]
    curves: dict[Trial, dict[str, Curve]] = {}
    rates: dict[str, Any] = {}
    try:
        for name in names:
            require_drift(name)
        args.out.resolve().parent.mkdir(parents=True, exist_ok=True)
        bench = Bench(args.cells, agent)
        for env in games:
            rate, tried = best_rate(bench, env)
            rates[env] = {"chosen": rate, f"IQM of {agent.own}": tried}
        for steps in lengths:
            for env in games:
                rate = rates[env]["chosen"]
                for name in (BASELINE, *([agent.own] if steps == min(lengths) else []), *names):
                    final = bench.returns(name, env, steps, rate, SEEDS, SEED)
                    curve = Curve(final[:, None], np.asarray([steps], np.int64))
                    curves.setdefault(Trial(env, steps), {})[name] = curve
                report = report_of(Comparison(curves, {}), agent, rates, names)
                write_text(args.out, json.dumps(report, indent=1, default=lambda x: x._asdict()) + "\n")
    except (ValueError, RuntimeError, OSError, peer_env.PeerEnvError) as error:
        print(f"benchmarks.elsewhere: {error}", file=sys.stderr)
        return 2
    for name, parts in report[f"better than {BASELINE}"].items():
        print(f"{name}: P(better than {BASELINE}) " + ", ".join(f"{part} {p:.2f}" for part, p in parts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
