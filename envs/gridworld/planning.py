"""What is known of a grid world without an agent: the best return, the values of states, the value of a policy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp

from envs.gridworld.level import Level


class World(Protocol):
    """What these functions read of a `GridWorld`, their first argument."""

    @property
    def num_cells(self) -> int: ...
    @property
    def num_actions(self) -> int: ...
    @property
    def num_world_states(self) -> int: ...
    @property
    def num_objects(self) -> int: ...
    def effect(self, params: Level, position: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]: ...


def state_number(env: World, position: jax.Array, present: jax.Array) -> jax.Array:
    """i32[]: cell + C * (the presence bits of the objects)."""
    bits = jnp.where(present, 2 ** jnp.arange(env.num_objects), 0).sum()
    return (position + env.num_cells * bits).astype(jnp.int32)


@partial(jax.jit, static_argnums=0)
def is_solvable(env: World, level: Level) -> jax.Array:
    """bool[]: whether some object of positive reward can be collected; where all is shuffled, from every open cell."""
    cells = jnp.arange(env.num_cells)
    actions = jnp.arange(env.num_actions)
    target, collected = jax.vmap(jax.vmap(partial(env.effect, level), (None, 0)), (0, None))(cells, actions)

    def spread(_, reached):
        return reached.at[target].max(jnp.broadcast_to(reached[:, None], target.shape))

    def reached_from(start):
        return jax.lax.fori_loop(0, env.num_cells, spread, cells == start)

    good = level.used & (level.reward > 0)
    reached = reached_from(jnp.where(level.shuffled, level.open_cells[0], level.start))
    can_collect = (reached[:, None, None] & (collected[..., None] == level.cell)).any((0, 1))
    everywhere = (reached | level.wall).all() & good.any()
    return jnp.where(level.shuffled, everywhere, (can_collect & good).any())


@partial(jax.jit, static_argnums=0, static_argnames="gamma")
def value_iteration(env: World, level: Level, *, gamma: float = 1.0, steps: int | jax.Array | None = None) -> jax.Array:
    """The optimal value of every state with `steps` still to go (None: a whole episode): f32[S], by state number; S is
    `env.num_world_states`.

        V_n(s) = max_a E[r + gamma (1 - end) V_{n-1}(s')],    V_0 = 0

    Exact: objects come back independently of one another, so the expectation is taken one object at a time. For worlds whose
    objects keep their cells; in a shuffled one they would have to be part of the state.
    """
    action_values = _action_values(env, level, gamma)
    steps = level.max_steps_in_episode if steps is None else steps
    value = jax.lax.fori_loop(0, steps, lambda _, value: action_values(value).max(1), _no_value(env))
    return value.T.reshape(-1)


@partial(jax.jit, static_argnums=0, static_argnames="gamma")
def policy_evaluation(
    env: World, level: Level, policy: jax.Array, *, gamma: float = 1.0, steps: int | jax.Array | None = None
) -> jax.Array:
    """What every action is worth under a policy f32[S, A], with `steps`, at least 1, to go: f32[S, A].

    Q_n(s, a) = E[r + gamma (1 - end) V_{n-1}(s')],    V_n(s) = sum_a policy(a|s) Q_n(s, a),    V_0 = 0

    As exact as `value_iteration`, and for the same worlds. Raises ValueError for a policy of another shape.
    """
    if policy.shape != (env.num_world_states, env.num_actions):
        raise ValueError(f"policy must have shape {(env.num_world_states, env.num_actions)}, and has {policy.shape}.")
    action_values = _action_values(env, level, gamma)
    chosen = jnp.moveaxis(policy.reshape(-1, env.num_cells, env.num_actions), 0, -1)  # [C, A, 2^O]
    steps = level.max_steps_in_episode if steps is None else steps
    value = jax.lax.fori_loop(1, steps, lambda _, value: (chosen * action_values(value)).sum(1), _no_value(env))
    return jnp.moveaxis(action_values(value), -1, 0).reshape(-1, env.num_actions)


def _no_value(env: World) -> jax.Array:
    return jnp.zeros((env.num_cells, 2**env.num_objects))


def _action_values(env: World, level: Level, gamma: float) -> Callable[[jax.Array], jax.Array]:
    """E[r + gamma (1 - end) V(s')] as a function of V: f32[C, 2^O] -> f32[C, A, 2^O]."""
    cells, actions = jnp.arange(env.num_cells), jnp.arange(env.num_actions)
    target, collected = jax.vmap(jax.vmap(partial(env.effect, level), (None, 0)), (0, None))(cells, actions)
    shape = (2,) * env.num_objects  # presence, the last object first, as in the state's number
    present = (jnp.arange(2**env.num_objects)[:, None] >> jnp.arange(env.num_objects)) & 1
    here = collected[..., None] == level.cell  # [C, A, O]
    taken = here[..., None, :] & (present > 0) & level.used  # [C, A, 2^O, O]
    reward = jnp.where(taken, level.reward, 0.0).sum(-1)
    survival = 1.0 - jnp.minimum(jnp.where(taken, level.p_terminate, 0.0).sum(-1), 1.0)

    def after_step(value):
        """E over which objects come back: [C, 2^O] -> [C, A, 2^O], by presence before the step."""
        value = value[target].reshape((*target.shape, *shape))
        for i in range(env.num_objects):
            axis = 2 + env.num_objects - 1 - i
            absent, there = jnp.split(value, 2, axis=axis)
            p = level.p_respawn[i] * level.used[i]
            stays = here[..., i].reshape((*target.shape, *(1,) * env.num_objects))
            value = jnp.concatenate([(1 - p) * absent + p * there, jnp.where(stays, absent, there)], axis=axis)
        return value.reshape((*target.shape, -1))

    return lambda value: reward + gamma * survival * after_step(value)


def optimal_return(env: World, level: Level) -> jax.Array:
    """f32[]: the undiscounted return of the best policy from the start of an episode. NaN for a shuffled level."""
    value = value_iteration(env, level)[state_number(env, level.start, level.used)]
    return jnp.where(level.shuffled, jnp.nan, value)
