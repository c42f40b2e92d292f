"""The error of the outer critic beside the exact values: `python -m benchmarks.outer_critic`, some ten minutes on two cores.

Agents live under GROOVE. Every five updates there is a rollout for the outer critic, as in a search by meta-gradient. From
mid-life on, two figures are measured on these rollouts before the critic is fitted to them, for each level:

    ratio    mean A over the deviation of A, the generalised advantage under the critic; 0 if the critic has no bias
    error    mean |V(s) - V_pi(s)| over mean |V_pi(s)|, V_pi by `policy_evaluation` at some of the rollouts
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import envs
import learned_objectives as lo
from benchmarks.record import provenance
from discover.agents.agent import Agent
from discover.agents.setups import GRID
from discover.searches import curriculum as cu
from discover.searches.metagrad import MetaGrad, MetaGradConfig
from learned_objectives.mirror import generalised_advantage

SIZES = (("small", 250, 16), ("dense", 250, 4), ("dense", 2500, 4))  # world, updates in a life, levels
EXACT = 5  # comparisons with the exact values in the second half of a life
HORIZON = 1500  # steps of policy evaluation, where 0.99 ** 1500 is 3e-7


class GradientSteps(MetaGrad):
    """Fits a table as it does a network."""

    tabular = False


def critics(agent: Agent) -> dict[str, MetaGrad]:
    return {
        "Adam, 1e-2": GradientSteps(MetaGradConfig(), agent),
        "Adam, 0.3": GradientSteps(MetaGradConfig(critic_learning_rate=0.3), agent),
        "closed form": MetaGrad(MetaGradConfig(), agent),
    }


def meet(search: MetaGrad, objective, member, after):
    """(the member with its critic fitted to an outer rollout, [mean, deviation of A], the rollout before the fit)."""
    env, outer = search._look(objective, after, member)
    advantage = generalised_advantage(outer, gamma=search.config.gamma, gae_lambda=search.config.gae_lambda)
    critic, opt, _ = search._fit_critic(member, after, outer, advantage)
    member = member.replace(state=after.replace(env=env), critic=critic, critic_opt=opt)
    return member, jnp.stack([advantage.mean(), advantage.std()]), outer


def exact_values(search: MetaGrad, member, state) -> jax.Array:
    """f32[num_states]: V of the policy, with truncated episodes going on, as the critic counts them."""
    env = search.agent.env
    logits = search.agent.networks.actor(state.params, jnp.arange(env.num_states)).logits
    policy = jax.nn.softmax(logits)
    level, gamma = member.drawn.task.env_params, search.config.gamma
    return (policy * envs.gridworld.policy_evaluation(env, level, policy, gamma=gamma, steps=HORIZON)).sum(-1)


def measure(world: str, updates: int, levels: int, seed: int) -> dict[str, Any]:
    env, _ = envs.make(f"gridworld/{world}")
    objective = lo.load("groove")
    searches = critics(Agent(env, GRID.agent, objective.critic_width))
    first = next(iter(searches.values()))
    agent, window = first.agent, first.config.window
    tasks = cu.Tasks(agent, updates * agent.config.steps_per_update, GRID.agent.learning_rate)

    def births(key):
        drawn = cu.fresh(tasks, jax.random.fold_in(key, cu.TASK))
        return [search.birth(drawn, key, jnp.int32(updates)) for search in searches.values()]

    def one_window(members):
        def update(state, _):
            return agent.step(objective, members[0].drawn.task, state)[0], None

        # The critics follow one and the same life.
        after, _ = jax.lax.scan(update, members[0].state, None, length=window)
        found = [meet(s, objective, m, after) for s, m in zip(searches.values(), members, strict=True)]
        members, advantages, outers = zip(*found, strict=True)
        return list(members), (jnp.stack(advantages), after, outers)

    @partial(jax.jit, static_argnums=1)
    def live(members, length):
        def step(members, _):
            members, (advantages, *_) = one_window(members)
            return members, advantages

        return jax.vmap(lambda members: jax.lax.scan(step, members, None, length=length))(members)

    @jax.jit
    @jax.vmap
    def compare(members):
        members, (advantages, after, outers) = one_window(members)
        exact = exact_values(first, members[0], after)[outers[0].obs]
        errors = jnp.stack([jnp.abs(outer.critic[..., 0] - exact).mean() for outer in outers])
        return members, advantages, errors, jnp.abs(exact).mean()

    members = jax.jit(jax.vmap(births))(jax.random.split(jax.random.key(seed), levels))
    half = updates // window // 2
    members, _ = live(members, half)
    rows, errors, sizes = [], [], []
    for _ in range(EXACT):
        members, advantages = live(members, half // EXACT - 1)
        members, last, error, size = compare(members)
        rows.append(np.concatenate([advantages, last[:, None]], axis=1))
        errors.append(error)
        sizes.append(size)
    mean, deviation = np.moveaxis(np.concatenate(rows, axis=1).mean(1), -1, 0)  # each [levels, critics]
    error, size = np.mean(errors, axis=0), np.mean(sizes, axis=0)
    met = deviation[:, 0] > 1e-6  # a level whose agent meets no reward has neither figure
    out = {}
    for i, name in enumerate(searches):
        ratio, relative = mean[met, i] / deviation[met, i], error[met, i] / size[met]
        out[name] = {
            "ratio": figure(mean[met, i].sum() / deviation[met, i].sum()),
            "ratio_by_level": [figure(x) for x in ratio],
            "error": figure(error[met, i].sum() / size[met].sum()),
            "error_by_level": [figure(x) for x in relative],
        }
    return {"value": figure(size[met].mean()), "levels": int(met.sum()), "critics": out}


def figure(x) -> float:
    return round(float(x), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/outer_critic.json"))
    args = parser.parse_args()
    rows = []
    for world, updates, levels in SIZES:
        rows.append({"world": world, "updates": updates} | measure(world, updates, levels, args.seed))
        print(json.dumps(rows[-1]), flush=True)
    args.out.write_text(json.dumps({**provenance(), "seed": args.seed, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
