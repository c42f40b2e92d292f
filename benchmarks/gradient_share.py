"""Does the value loss take the policy's share of the clipped gradient? `python -m benchmarks.gradient_share`.

The usual agent clips the gradient of actor and critic by one joint norm. Where returns are large and rewards are not normalised,
as on Acrobot, the value loss fills that norm, and what is left for the policy is small. For PPO under several settings this
reports, over 20 seeds: the actor's share of the joint norm and the factor by which clipping shrinks the gradient, both means over
all gradient steps; the share of samples that PPO's clip cuts and the largest |r - 1|; the final return; and the probability that
a seed returns more than one of the usual setting.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import learned_objectives as lo
from benchmarks.ratios import watch
from benchmarks.record import ROOT, provenance
from discover.agents.agent import Agent
from discover.agents.learning import Learner, norm
from discover.agents.setups import Setup, usual_setup
from discover.results.statistics import interval, iqm_interval, probability_of_improvement

SEEDS = 20
SEED = 20_261_127
ENVS = {"Acrobot-v1": 131_072, "CartPole-v1": 131_072}


@dataclass(frozen=True)
class MeasuredLearner(Learner):
    """The same gradient steps, with two more metrics where the norm is joint: `actor_share` and `shrink`."""

    def _descend(self, slope, params, opt_state, rate, order):
        if self.config.clip == "separate":
            return super()._descend(slope, params, opt_state, rate, order)
        actor = jax.eval_shape(self.networks.init, jax.random.key(0))["actor"]
        size = sum(leaf.size for leaf in jax.tree.leaves(actor))  # the actor comes first in the packed vector

        def measured(params, index):
            grads, metrics = slope(params, index)
            joint = norm(grads)
            shrink = jnp.minimum(1.0, self.config.max_grad_norm / joint)
            return grads, metrics | {"actor_share": norm(grads[:size]) / joint, "shrink": shrink}

        return super()._descend(measured, params, opt_state, rate, order)


@dataclass(frozen=True)
class MeasuredAgent(Agent):
    @cached_property
    def learner(self) -> Learner:
        return MeasuredLearner(self.networks, self.config, self.shards, self._row_shards)


def variants(usual: Setup) -> dict[str, Setup]:
    agent, loss = usual.agent, usual.loss
    return {
        "usual": usual,
        "clip=apart": Setup(replace(agent, clip="separate"), loss),
        "value_coef=0.005": Setup(agent, replace(loss, value_coef=0.005)),
        "max_grad_norm=50": Setup(replace(agent, max_grad_norm=50.0), loss),
        "normalise_reward": Setup(replace(agent, normalise_reward=True), loss),
        "normalise_obs and _reward": Setup(replace(agent, normalise_obs=True, normalise_reward=True), loss),
    }


def measure(env: str, steps: int, name: str, setup: Setup, usual: np.ndarray | None) -> dict[str, Any]:
    lives = watch(lo.load("ppo"), env, setup, total_steps=steps, seed=SEED, first=0, count=SEEDS, kind=MeasuredAgent)
    final = lives.final_returns.astype(float)
    return {
        "env": env,
        "total_steps": steps,
        "setting": name,
        "iqm": list(iqm_interval(final)),
        "better than usual": None if usual is None else list(interval(probability_of_improvement, final, usual)),
        "cut": float(lives.metrics["cut"].mean()),
        "largest": float(lives.metrics["largest"].max()),
        **{key: float(lives.metrics[key].mean()) for key in ("actor_share", "shrink") if key in lives.metrics},
        "final_returns": final.round(3).tolist(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gradient_share", description=__doc__)
    parser.add_argument("--envs", nargs="+", choices=ENVS, default=list(ENVS))
    args = parser.parse_args(argv)
    out, rows = ROOT / "benchmarks/results/gradient-share.json", []
    for env in args.envs:
        usual = None
        for name, setup in variants(usual_setup(env)).items():
            rows.append(measure(env, ENVS[env], name, setup, usual))
            usual = np.array(rows[-1]["final_returns"]) if usual is None else usual
            print({key: value for key, value in rows[-1].items() if key != "final_returns"}, flush=True)
    head = provenance() | {"seeds": SEEDS, "seed": SEED}
    if args.envs == list(ENVS):
        out.write_text(json.dumps(head | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
