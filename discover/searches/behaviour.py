"""What an agent did in its life, beside its return: statistics of its updates, and descriptors made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

import learned_objectives as lo
from discover.agents.agent import AgentState, Task, diverged, stretches
from discover.plugins import Registry
from discover.searches import curriculum as cu
from discover.searches.problem import STRETCHES, Setting, as_known, final_return
from learned_objectives import Statistics


class Behaviour(struct.PyTreeNode):
    """Of a whole life."""

    mean: Statistics  # over the updates of the life
    last: Statistics  # of the last update


class Descriptor(NamedTuple):
    """A number that says how an agent behaved, and the range that a grid divides."""

    of: Callable[[Behaviour], jax.Array]  # -> f32[]
    low: float
    high: float
    label: str  # for figures


DESCRIPTORS = Registry(
    "descriptors",
    "descriptor",
    {
        "log_kl": Descriptor(
            lambda b: jnp.log10(jnp.maximum(b.mean.kl, 1e-12)), -3.0, 1.0, "log10 of the mean KL per update, in nats"
        ),
        "entropy": Descriptor(lambda b: b.last.entropy, 0.0, 1.0, "entropy at the end, over the largest"),
        "clipped": Descriptor(lambda b: b.mean.clipped, 0.0, 1.0, "mean share of ratios outside [0.8, 1.2]"),
        "explained_variance": Descriptor(
            lambda b: b.mean.explained_variance, -1.0, 1.0, "mean explained variance of the critic"
        ),
    },
    "a Descriptor",
    lambda plug: isinstance(plug, Descriptor),
)


def watched(setting: Setting) -> Setting:
    """A setting whose agent computes statistics of every update."""
    return setting._replace(agent=dataclasses.replace(setting.agent, statistics=True))


def live_watched(setting: Setting, objective: lo.Objective, task: Task, key: jax.Array) -> tuple[jax.Array, Behaviour]:
    """(fitness f32[], behaviour) of one life in a `watched` setting. The fitness is that of `problem.life_fitness`."""
    agent, lives = setting.agent, setting.tasks.lifetimes
    one_length = lives.shortest == lives.longest
    updates = setting.tasks.longest if one_length else cu.num_updates(agent.config, task)
    stops = stretches(updates, min(STRETCHES, lives.shortest // agent.config.steps_per_update))

    def update(_, carry: tuple[AgentState, Statistics]) -> tuple[AgentState, Statistics]:
        before, total = carry
        after, _ = agent.update(objective, task, before)
        goes_on = after.num_updates > before.num_updates  # not after the agent's own lifetime
        return after, jax.tree.map(lambda t, x: t + jnp.where(goes_on, x, 0.0), total, after.statistics)

    def stretch(carry, bounds):
        state, total = carry
        state = state.replace(env=state.env.replace(episodes=state.env.episodes.forget()))
        state, total = jax.lax.fori_loop(*bounds, update, (state, total))
        return (state, total), state.env.episodes.mean_return()

    start = agent.init(task, key), Statistics.zeros()
    (state, total), returns = jax.lax.scan(stretch, start, (stops[:-1], stops[1:]))
    fitness = as_known(state, returns[-1]) if setting.episodes is None else final_return(setting, task, state)
    fitness = jnp.where(diverged(state) | ~jnp.isfinite(fitness), jnp.nan, fitness)
    return fitness, Behaviour(jax.tree.map(lambda t: t / state.num_updates, total), state.statistics)
