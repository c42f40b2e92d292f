"""The targets of an update rule of LPG's family for an agent in a grid world, beside the true values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from discover.agents.agent import Agent, AgentConfig
from discover.agents.setups import GRID
from envs.gridworld import GridWorld, Level, policy_evaluation
from learned_objectives import LPG

LEAST = 4  # visits of a pair or a state that is reported


class Insight(NamedTuple):
    """At one moment of a life, over the pairs of state and action that the agent visits and over the states."""

    fraction: float  # of the life that has passed
    policy_target: np.ndarray  # f64[pairs], mean pi-hat
    advantage: np.ndarray  # f32[pairs], of the agent's policy at that moment, exact with an episode to go
    reading: np.ndarray  # f64[states], mean phi(y-hat): what the rule itself reads in the prediction that it asks for
    value: np.ndarray  # f32[states], of the agent's policy at that moment, exact
    ret: float  # undiscounted return of the policy, from the start of an episode; exact


def insights(
    lpg: LPG,
    env: GridWorld,
    level: Level,
    *,
    num_updates: int = 250,
    fractions: Sequence[float] = (0.0, 0.05, 0.2, 1.0),
    config: AgentConfig = GRID.agent,
    seed: int = 0,
) -> list[Insight]:
    """Train one tabular agent with the rule, and look at the targets of one rollout at each fraction of its life.

    Returns one insight for each fraction. Raises ValueError for an environment whose observations do not number its states, for
    a level whose objects move, and for fractions that are none.
    """
    if env.observation != "index" or bool(level.shuffled):
        raise ValueError(
            "insights are of tabular agents, and need worlds with observation='index', whose objects keep their cells."
        )
    if not fractions or not all(0 <= fraction <= 1 for fraction in fractions):
        raise ValueError(f"fractions must be some in [0, 1], and are {tuple(fractions)}.")
    agent = Agent.fit(env, config, lpg)
    task = agent.task(level, num_updates * config.steps_per_update)
    key = jax.random.key(seed)
    state, update = jax.jit(agent.init)(task, key), jax.jit(lambda state: agent.update(lpg, task, state)[0])
    look = jax.jit(lambda state: _look(agent, lpg, task, state))
    moments = [round(fraction * num_updates) for fraction in fractions]
    found = {}
    for step in range(max(moments) + 1):
        if step in moments:
            found[step] = _insight(step / num_updates, *map(np.asarray, look(state)))
        state = update(state)
    return [found[step] for step in moments]


def _look(agent: Agent, lpg: LPG, task, state):
    """(states, actions, pi-hat, phi(y-hat)) of a rollout [T, B], and Q, the policy f32[S, A] and the return of that moment."""
    env, level = agent.env, task.env_params
    _, rollout = agent.rollout(lpg, task, state, jax.random.split(jax.random.fold_in(state.key, 10**9), 3))
    targets = lpg.targets(rollout, agent.progress(task, state))
    policy = jnp.exp(agent.networks.actor(state.params, jnp.arange(env.num_states)).log_probs)
    worth = policy_evaluation(env, level, policy, gamma=lpg.gamma)
    whole = (policy * policy_evaluation(env, level, policy)).sum(-1)
    start, _ = env.reset_env(jax.random.key(0), level)
    return rollout.obs, rollout.action, targets.policy, lpg.reading(targets.prediction), worth, policy, whole[start]


def _insight(fraction, states, actions, pi_hat, reading, worth, policy, ret) -> Insight:
    value = (policy * worth).sum(-1)
    pairs = (states * worth.shape[1] + actions).ravel()
    often = np.flatnonzero(np.bincount(pairs, minlength=worth.size) >= LEAST)
    visited = np.flatnonzero(np.bincount(states.ravel(), minlength=len(value)) >= LEAST)
    return Insight(
        fraction,
        _mean(pi_hat, pairs, worth.size)[often],
        (worth - value[:, None]).ravel()[often],
        _mean(reading, states, len(value))[visited],
        value[visited],
        float(ret),
    )


def _mean(x: np.ndarray, where: np.ndarray, size: int) -> np.ndarray:
    """Mean of x by number in [0, size); 0 for numbers that do not occur."""
    where = where.ravel()
    return np.bincount(where, x.ravel(), size) / np.maximum(np.bincount(where, minlength=size), 1)
