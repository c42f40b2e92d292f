"""Population-based training beside fixed settings of PPO at equal steps: `python -m benchmarks.pbt`; half an hour on two cores.

A population of agents trains for one life. All ways of training have as many agents, of the same length of life, and so the same
number of environment steps. The numbers are the six of `tuned_ppo` and the learning rate.

    PBT                members copy and perturb (`--search pbt`)
    best fixed draw    the same first members, each with its own numbers for the whole life, and no copies
    usual PPO, best    as many agents with PPO's usual numbers
    usual PPO, mean    the same agents, in the mean
    PBT's last, mean   as many new agents, each with the last numbers of PBT's best member for the whole life, in the mean

Of the first three the agent with the highest smoothed training return is taken. Returns are those of 64 fresh episodes. Each
statistic is the IQM over meta-seeds with its 95 % bootstrap interval; differences are means over meta-seeds, in pairs.

Writes benchmarks/results/pbt.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.record import ROOT, provenance
from discover.agents.setups import usual_setup
from discover.devices import parallel
from discover.results.statistics import interval, iqm_interval, paired_improvement
from discover.runs.store import write_text
from discover.searches.pbt import PBTConfig
from discover.searches.pbt_search import PBTSearch, PBTState
from discover.searches.problem import Problem, final_return
from discover.searches.recipe import Recipe

FIRST_SEED = 83_000
LIVES = {"CartPole-v1": (2**16, 16), "Breakout-MinAtar": (2**18, 4)}  # environment steps, updates of an interval
PBT, BEST, USUAL, MEAN, LAST = "PBT", "best fixed draw", "usual PPO, best", "usual PPO, mean", "PBT's last, mean"


class Trainer:
    """Populations in one environment, whose programs are compiled once."""

    def __init__(self, env: str, population: int):
        steps, updates = LIVES[env]
        setup = usual_setup(env)
        self.recipe = Recipe(
            objective="tuned_ppo",
            envs=(env,),
            total_steps=steps,
            agent=setup.agent,
            loss=setup.loss,
            search=PBTConfig(population=population, interval=updates),
        )
        self.first = PBTSearch(self.recipe.search, Problem(self.recipe))
        setting = self.first.problem.settings[0]

        def judged(task_key, state):
            return final_return(setting, setting.tasks(task_key), state)

        self.judged = parallel.sharded_map(judged, chunk=1, devices=self.first.devices)

    def search(self, seed: int, **settings: Any) -> PBTSearch:
        recipe = replace(self.recipe, seed=seed, search=replace(self.recipe.search, **settings))
        found = PBTSearch(recipe.search, Problem(recipe))
        found._births, found._intervals = self.first._births, self.first._intervals  # no setting of these enters them
        return found

    def train(self, search: PBTSearch, state: PBTState) -> tuple[PBTState, np.ndarray]:
        """(the state after one life, f64[P]: mean returns of fresh episodes)."""
        for generation in range(search.intervals):
            state, _ = search.step(state, generation)
        returns = self.judged(search._keys(0, 0)[0], state.lives[0])
        return state, np.asarray(returns, np.float64)


def returns_of(trainer: Trainer, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
    """(the return of each way of training, the numbers that PBT and the best draw end with)."""
    search = trainer.search(seed)
    state, found = trainer.train(search, search.init())
    best = int(state.best)
    returns, numbers = {PBT: found[best]}, {PBT: _numbers(state, best)}
    alone = trainer.search(seed, share=0.0)
    fixed, found = trainer.train(alone, alone.init())
    returns[BEST], numbers[BEST] = found[int(fixed.best)], _numbers(fixed, int(fixed.best))
    usual = trainer.search(seed, share=0.0, start_sigma=0.0, rate_spread=1.0)
    end, found = trainer.train(usual, usual.init())
    returns[USUAL], returns[MEAN] = found[int(end.best)], found.mean()
    last = jax.tree.map(lambda x: jnp.broadcast_to(x[best], x.shape), (state.objectives, state.rates))
    start = usual.init().replace(objectives=last[0], rates=last[1])
    returns[LAST] = trainer.train(usual, start)[1].mean()
    return {name: float(x) for name, x in returns.items()}, numbers


def _numbers(state: PBTState, member: int) -> dict[str, Any]:
    objective = jax.tree.map(lambda x: np.asarray(x[member]).round(3).tolist(), state.objectives)
    return {
        "rate": round(float(state.rates[member]), 3),
        "clip": [objective.drift.positive, objective.drift.negative],
        "entropy, value, lambda, value clip": objective.numbers[0],
    }


def report_of(returns: dict[str, list[float]]) -> dict[str, Any]:
    pbt = np.asarray(returns[PBT])
    pairs = {f"{PBT} - {name}": np.asarray(returns[name]) for name in (BEST, USUAL)}
    pairs |= {f"{LAST} - {MEAN}": np.asarray(returns[MEAN])}
    ours = {f"{LAST} - {MEAN}": np.asarray(returns[LAST])}
    return {
        "iqm": {name: iqm_interval(np.asarray(values)) for name, values in returns.items()},
        "difference": {
            name: interval(paired_improvement, ours.get(name, pbt), other, paired=True) for name, other in pairs.items()
        },
        "returns": {name: np.round(values, 3).tolist() for name, values in returns.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=list(LIVES), choices=list(LIVES))
    parser.add_argument("--population", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=8)
    args = parser.parse_args()
    if args.population < 4 or args.seeds < 2:
        parser.error("a comparison needs a population of at least 4, and at least 2 seeds.")
    report: dict[str, Any] = provenance() | {
        "population": args.population,
        "seeds": args.seeds,
        "first seed": FIRST_SEED,
    }
    report |= {"lives": {env: LIVES[env][0] for env in args.envs}, "envs": {}}
    for env in args.envs:
        began, trainer, found, numbers = time.monotonic(), Trainer(env, args.population), {}, []
        for seed in range(FIRST_SEED, FIRST_SEED + args.seeds):
            returns, ends = returns_of(trainer, seed)
            numbers.append(ends)
            for name, value in returns.items():
                found.setdefault(name, []).append(value)
            print(f"{env}, seed {seed}: {', '.join(f'{n} {x:.1f}' for n, x in returns.items())}", flush=True)
        report["envs"][env] = report_of(found) | {"numbers": numbers, "seconds": round(time.monotonic() - began)}
    text = json.dumps(report, indent=1, default=lambda x: x._asdict())
    write_text(ROOT / "benchmarks/results/pbt.json", text + "\n")
    for env, each in report["envs"].items():
        for name, found in (each["iqm"] | each["difference"]).items():
            print(f"{env}: {name} {found:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
