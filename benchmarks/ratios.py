"""Lives that record how far the ratio moves: the share of samples that PPO's clip would cut, and the largest |r - 1|.

A drift can matter only where ratios leave the neighbourhood of 1. PPO's clip, for one, changes a gradient only at a sample with
r > 1 + epsilon and A > 0, or r < 1 - epsilon and A < 0; such a sample is called cut here, whatever objective trains the agent.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import learned_objectives as lo
from discover.agents.agent import Agent, Task, diverged, stretches
from discover.agents.objectives import as_arrays
from discover.agents.setups import Setup
from discover.devices import parallel
from discover.evaluation.train import make_life
from learned_objectives.mirror import normalise

EPSILON = 0.2  # PPO's
NUM_EVALS = 20  # as of `evaluate`: a final return is the mean over the last twentieth of a life


class Lives(NamedTuple):
    """What was measured of `S` agents."""

    final_returns: np.ndarray  # f32[S]; NaN where no episode ended or the agent diverged
    metrics: dict[str, np.ndarray]  # f32[S] each, mean over all gradient steps of the life; of `largest`, the maximum


class Watched(lo.Mirror):
    """The same loss, with two more metrics: `cut`, the share of samples, and `largest`, |r - 1|."""

    def actor_loss(self, log_prob, entropy, rollout, targets, progress):
        loss, metrics = super().actor_loss(log_prob, entropy, rollout, targets, progress)
        change = jnp.expm1(log_prob - rollout.log_prob)
        advantage = normalise(targets.advantage)
        return loss, metrics | {"cut": is_cut(change, advantage).mean(), "largest": jnp.abs(change).max()}


def is_cut(change: jax.Array, advantage: jax.Array) -> jax.Array:
    """bool[...]: whether PPO's clip removes the gradient of a sample with r - 1 = `change`."""
    return jnp.where(advantage >= 0, change > EPSILON, change < -EPSILON)


def watch(
    objective: lo.Mirror,
    env: str,
    setup: Setup,
    *,
    total_steps: int,
    seed: int,
    first: int,
    count: int,
    kind: type[Agent] = Agent,
) -> Lives:
    """Train agents number `first` to `first + count - 1` of a seed; agent i has the same key as in `discover.train`."""
    loaded = setup.loss.on(objective)
    watched = Watched(**{name: getattr(loaded, name) for name in lo.Mirror.__dataclass_fields__})
    life, task, num_updates = make_life(env, setup.agent, total_steps)
    learner = kind.fit(life.env, setup.agent, watched)
    root = jax.random.key(seed)
    keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.arange(first, first + count))
    stops = np.asarray(stretches(num_updates, min(NUM_EVALS, num_updates)))
    final, metrics = _program(learner)((as_arrays(watched), task, (jnp.int32(stops[-2]), jnp.int32(stops[-1]))), keys)
    return Lives(np.asarray(final), {name: np.asarray(x) for name, x in metrics.items()})


@lru_cache(maxsize=8)
def _program(agent: Agent):
    def live(shared: tuple[Watched, Task, tuple[Any, Any]], key: jax.Array):
        objective, task, (last_stretch, end) = shared

        def update(_, carry):
            state, sums, largest = carry
            state, metrics = agent.update(objective, task, state)
            largest = jnp.maximum(largest, metrics.pop("largest").max())
            return state, jax.tree.map(lambda total, x: total + x.mean(), sums, metrics), largest

        state = agent.init(task, key)
        metrics = jax.eval_shape(lambda: agent.update(objective, task, state)[1])
        sums = {name: jnp.float32(0) for name in metrics if name != "largest"}
        carry = jax.lax.fori_loop(0, last_stretch, update, (state, sums, jnp.float32(0)))
        state = carry[0].replace(env=carry[0].env.replace(episodes=carry[0].env.episodes.forget()))
        state, sums, largest = jax.lax.fori_loop(last_stretch, end, update, (state, *carry[1:]))
        final = jnp.where(diverged(state), jnp.nan, state.env.episodes.mean_return())
        return final, {name: total / end for name, total in sums.items()} | {"largest": largest}

    return parallel.sharded_map(live, vmap=agent.vmap)
