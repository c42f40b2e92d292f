"""Every member of the mirror family beside PPO: `python -m benchmarks.family`, again to go on.

Members are drifts, classes of Mirror that change something beside the drift, and PPO under other optimisers. All have the agents
of `usual_setup`, which are tuned for PPO with Adam alone, the same budget and the same keys. A rate that suits Adam does not suit
another optimiser: each of those has the one of a few factors on Adam's rate that returns most with other seeds. HLGaussMirror,
whose values must be within its bins, has scaled rewards, and so has a PPO beside it. Everything else has its default settings.

The report has for each member and environment the IQM of the final return with its 95 % bootstrap interval over seeds, and
P(better than PPO) with its own. "CartPole-v1" has 131,072 steps, "Breakout-MinAtar" 262,144.

Trained cells are kept in runs/family. Writes benchmarks/results/family.json after every cell.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import learned_objectives as lo
from benchmarks.record import ROOT, provenance
from discover.agents.objectives import identity, resolve_objective
from discover.agents.setups import usual_setup
from discover.evaluation.train import train
from discover.results import statistics
from discover.runs.store import write_text

SEEDS, SEED = 8, 81_000
TUNING_SEEDS, TUNING_SEED = 4, 82_000
BUDGETS = {"CartPole-v1": 131_072, "Breakout-MinAtar": 262_144}
BASELINE = "ppo"


@dataclass(frozen=True)
class Member:
    """One way to learn."""

    objective: str | lo.Objective
    about: str
    agent: Mapping[str, Any] = field(default_factory=dict)  # settings that differ from the usual ones
    factors: tuple[float, ...] = (1.0,)  # on the usual learning rate, that are tried


OTHER_RATES = (0.3, 1.0, 3.0, 10.0)
MEMBERS = {
    "ppo": Member("ppo", "clip 0.2"),
    "a2c": Member("a2c", "no drift"),
    "dpo": Member("dpo", "Lu et al. 2022"),
    "mdpo": Member("mdpo", "KL(pi || pi_old), weight 1 / (1 - n/N)"),
    "spo": Member(lo.Mirror(drift=lo.SPO()), "epsilon 0.2"),
    "tsallis 0": Member(lo.Mirror(drift=lo.Tsallis(1.0, 0.0)), "q 0, KL(pi_old || pi), weight 1"),
    "tsallis 1": Member(lo.Mirror(drift=lo.Tsallis(1.0, 1.0)), "q 1, KL(pi || pi_old), weight 1"),
    "tsallis 2": Member(lo.Mirror(drift=lo.Tsallis(1.0, 2.0)), "q 2, half the chi-squared divergence, weight 1"),
    "clip higher": Member(lo.Mirror(drift=lo.AsymmetricClip(jnp.float32(math.log(1.4)))), "clip 0.28 where A >= 0"),
    "ta_ppo": Member("ta_ppo", "clip that depends on time, read off ta_lpo"),
    "lpo": Member("lpo", "searched clips"),
    "ta_lpo": Member("ta_lpo", "searched clips that depend on time"),
    "lpo_2026_11": Member("lpo_2026_11", "searched network; Breakout was in its search"),
    "ta_lpo_2026_11": Member("ta_lpo_2026_11", "searched network that depends on time; Breakout was in its search"),
    "scaled rewards": Member("ppo", "clip 0.2, scaled rewards", {"normalise_reward": True}),
    "hl-gauss": Member(lo.HLGaussMirror(), "critic of 51 bins, scaled rewards", {"normalise_reward": True}),
    "group": Member(lo.GroupMirror(), "mean over environments as the baseline, no critic"),
    "munchausen": Member(lo.MunchausenMirror(), "scaled log-probability added to the reward"),
    "adaptive kl": Member(lo.AdaptiveKLMirror(), "no clip, penalty with a target of 0.01 nats"),
    "averaged kl": Member(lo.AveragedKLMirror(), "clip 0.2, penalty 0.1 towards averaged parameters"),
    "dropout": Member(lo.DropoutMirror(), "clip 0.2, samples with |r - 1| > 0.5 dropped"),
    "rmsprop": Member("ppo", "clip 0.2, RMSProp", {"optimizer": "rmsprop"}, OTHER_RATES),
    "lion": Member("ppo", "clip 0.2, Lion", {"optimizer": "lion"}, OTHER_RATES),
    "muon": Member("ppo", "clip 0.2, Muon", {"optimizer": "muon"}, OTHER_RATES),
}


@dataclass(frozen=True)
class Bench:
    """Trains cells and keeps them."""

    cells: Path

    def returns(self, name: str, env: str, steps: int, factor: float, seeds: int, seed: int) -> np.ndarray:
        """f32[seeds]: final returns of a member, from disk where they are there."""
        member, usual = MEMBERS[name], usual_setup(env)
        agent = replace(usual.agent, learning_rate=usual.agent.learning_rate * factor, **member.agent)
        objective = usual.loss.on(resolve_objective(member.objective))
        life = {
            "objective": identity(objective),
            "kind": type(objective).__name__,
            "env": env,
            "total_steps": steps,
            "agent": dataclasses.asdict(agent),
            "num_seeds": seeds,
            "seed": seed,
        }
        path = self.cells / f"{hashlib.sha256(json.dumps(life, sort_keys=True).encode()).hexdigest()[:16]}.json"
        if not path.exists():
            print(f"{env}, {steps:,} steps, {seeds} seeds, rate x {factor:g}: {name}", flush=True)
            found = train(objective, env, total_steps=steps, num_seeds=seeds, seed=seed, num_evals=10, agent=agent)
            final = [float(x) if np.isfinite(x) else None for x in found.returns[:, -1]]
            self.cells.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(life | {"member": name, "returns": final}, indent=1) + "\n")
        return np.array([math.nan if x is None else x for x in json.loads(path.read_text())["returns"]], np.float32)

    def factor(self, name: str, env: str, steps: int) -> float:
        """The factor on the learning rate under which a member returns most, with seeds that are not used again."""
        tried = MEMBERS[name].factors
        if len(tried) == 1:
            return tried[0]
        of = lambda factor: float(
            statistics.iqm(np.nan_to_num(self.returns(name, env, steps, factor, TUNING_SEEDS, TUNING_SEED)[None]))
        )
        return max(tried, key=of)


def row_of(name: str, env: str, factor: float, own: np.ndarray, baseline: np.ndarray) -> dict[str, Any]:
    better = statistics.interval(statistics.probability_of_improvement, own[None], baseline[None])
    return {
        "member": name,
        "about": MEMBERS[name].about,
        "env": env,
        "rate factor": factor,
        "IQM": statistics.iqm_interval(own),
        f"P(better than {BASELINE})": None if name == BASELINE else better,
        "final returns": [round(float(x), 3) if np.isfinite(x) else None for x in own],
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        better = row[f"P(better than {BASELINE})"]
        lines.append(
            f"{row['env']:<18} {row['member']:<15} {row['IQM']!s:<24} {'' if better is None else format(better, '.2f')}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", nargs="+", choices=MEMBERS, default=list(MEMBERS))
    parser.add_argument("--envs", nargs="+", choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument("--steps", type=int, help="environment steps of a life, for a trial; default: see above")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--cells", type=Path, default=ROOT / "runs/family", help="where trained cells are kept")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/family.json")
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error("an interval needs at least 2 seeds.")
    bench, rows = Bench(args.cells), []
    names = [BASELINE, *(name for name in args.members if name != BASELINE)]
    report: dict[str, Any] = provenance() | {"seeds": args.seeds, "seed": SEED, "rows": rows}
    for env in args.envs:
        steps = args.steps or BUDGETS[env]
        report.setdefault("total_steps", {})[env] = steps
        for name in names:
            factor = bench.factor(name, env, steps)
            own = bench.returns(name, env, steps, factor, args.seeds, SEED)
            rows.append(row_of(name, env, factor, own, bench.returns(BASELINE, env, steps, 1.0, args.seeds, SEED)))
            write_text(args.out, json.dumps(report, indent=1, default=lambda x: x._asdict()) + "\n")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
