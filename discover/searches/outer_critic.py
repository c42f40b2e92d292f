"""How a table of values, V(s) for numbered states, is fitted to the rollouts of a life, one after another, in closed form."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from learned_objectives import Rollout
from learned_objectives.mirror import generalised_advantage

SHIFT = 0.2  # of the constant correction: its error averages over some 5 rollouts
PRIOR = 8.0  # visits that the value before the rollout counts for


class Table(NamedTuple):
    """Values, and how often episodes terminate where they are from."""

    values: jax.Array  # f32[num_states]
    terminations: jax.Array  # f32[], in all rollouts so far
    steps: jax.Array  # f32[], of all rollouts so far


def fit_table(
    table: Table, rollout: Rollout, *, gamma: float, gae_lambda: float, sweeps: int
) -> tuple[Table, jax.Array]:
    """The table after a rollout whose observations i32[T, B] number states, and f32[]: half the mean square of A_t before.

    First every value moves by the same number, a fifth of the one for which the mean TD error would be zero:

        V(s) <- V(s) + 0.2 mean_t[delta_t] / (1 - gamma (1 - p)),    p = (terminations + 1) / (steps + 1), of the rollouts before
        delta_t = r_t + gamma (1 - terminated_t) V(s_{t+1}) - V(s_t)

    Then each sweep solves a ridge regression to TD(lambda) targets, which is a mean over the n(s) visits to each state:

        V(s) <- V(s) + sum_{t: s_t = s} A_t / (n(s) + 8),    A_t the generalised advantage under V

    The first step is the least-squares TD solution for a constant feature. Without it the level of the values rises only by
    what one rollout propagates, and stays behind the agent's progress (measured: benchmarks/outer_critic.py). The p of earlier
    rollouts is independent of delta_t; that of this one would bias the ratio. Reference for least-squares TD: Bradtke and Barto
    1996, Machine Learning 22.
    """
    obs, end = rollout.obs, rollout.terminated | rollout.truncated
    visits = jnp.zeros_like(table.values).at[obs].add(1.0)
    next_value = jnp.where(rollout.terminated, 0.0, rollout.next_critic[..., 0])
    delta = rollout.reward + gamma * next_value - rollout.critic[..., 0]
    p = (table.terminations + 1.0) / (table.steps + 1.0)
    shift = SHIFT * delta.mean() / (1.0 - gamma * (1.0 - p))

    def sweep(_, values: jax.Array) -> jax.Array:
        # True successors of ended episodes are not in the rollout: they keep their values, but for the shift.
        value, after = values[obs], rollout.next_critic[..., 0] + shift
        after = jnp.concatenate([jnp.where(end[:-1], after[:-1], value[1:]), after[-1:]])
        seen = rollout._replace(critic=value[..., None], next_critic=after[..., None])
        advantage = generalised_advantage(seen, gamma=gamma, gae_lambda=gae_lambda)
        return values + jnp.zeros_like(values).at[obs].add(advantage) / (visits + PRIOR)

    before = generalised_advantage(rollout, gamma=gamma, gae_lambda=gae_lambda)
    values = jax.lax.fori_loop(0, sweeps, sweep, table.values + shift)
    terminations = table.terminations + rollout.terminated.sum().astype(table.terminations.dtype)
    after = Table(values, terminations, table.steps + float(obs.size))
    return after, 0.5 * (before**2).mean()
