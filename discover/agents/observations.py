"""What the networks of an agent see besides the observation: which actions are valid, and what a recurrent network remembers.

Both travel with the observation, as pytrees, so that everything that holds observations holds them too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

PyTree = Any


class Masked(NamedTuple):
    """An observation and the actions that are valid in its state."""

    obs: jax.Array  # [..., observation]
    mask: jax.Array  # bool[..., A]; of MultiDiscrete actions, the masks of the choices one after another


class Recalled(NamedTuple):
    """An observation and what recurrent networks remember of the steps before it."""

    obs: PyTree  # [..., observation], or Masked
    hidden: dict[str, jax.Array]  # f32[..., H] of "actor" and of "critic"; zeros at the start of an episode
    starts: jax.Array  # bool[...], whether an episode starts here


def visible(obs: PyTree) -> jax.Array:
    """The observation itself, [..., observation]."""
    return visible(obs.obs) if isinstance(obs, Masked | Recalled) else obs


def map_visible(fn: Callable[[jax.Array], jax.Array], obs: PyTree) -> PyTree:
    """The same with `fn` of the observation itself."""
    return obs._replace(obs=map_visible(fn, obs.obs)) if isinstance(obs, Masked | Recalled) else fn(obs)


class Masking:
    """An environment with an `action_mask`, whose observations are `Masked`."""

    def __init__(self, env: Any):
        self.env = env
        self.is_truncated, self.binary_obs = env.is_truncated, env.binary_obs

    def _masked(self, obs: jax.Array, state: PyTree, params: PyTree) -> Masked:
        return Masked(obs, self.env.action_mask(state, params))

    def reset(self, key, params):
        obs, state = self.env.reset(key, params)
        return self._masked(obs, state, params), state

    def reset_env(self, key, params):
        obs, state = self.env.reset_env(key, params)
        return self._masked(obs, state, params), state

    def step(self, key, state, action, params):
        obs, state, *rest = self.env.step(key, state, action, params)
        return self._masked(obs, state, params), state, *rest

    def step_env(self, key, state, action, params):
        obs, state, *rest = self.env.step_env(key, state, action, params)
        return self._masked(obs, state, params), state, *rest


class Recalling:
    """An environment whose first observations are `Recalled`. Those after a step are so too once `Networks.follow` had them."""

    def __init__(self, env: Any, first: Callable[[PyTree], PyTree]):
        self.env, self.first = env, first
        self.step, self.step_env = env.step, env.step_env
        self.is_truncated, self.binary_obs = env.is_truncated, env.binary_obs

    def reset(self, key, params):
        obs, state = self.env.reset(key, params)
        return self.first(obs), state

    def reset_env(self, key, params):
        obs, state = self.env.reset_env(key, params)
        return self.first(obs), state
