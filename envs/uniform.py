"""Any gymnax environment, with the differences between them taken out."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments.environment import Environment
from gymnax.environments.spaces import Box, Discrete


def strong(tree: Any) -> Any:
    """The same values as arrays without weak types, so that they can be a scan's carry."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), tree)


class Uniform(Environment):
    """A gymnax environment whose types do not depend on which one it is.

    Observations: float32 of rank >= 1; a scalar becomes [1], one of n becomes one-hot [n].
    Actions: Discrete, or a Box float32[n].  Reward: float32[].  Flags: bool[].
    State: strongly typed.  info: discount, terminated, truncated, final_observation.
    The dynamics and the use of keys are those of `env`.
    """

    def __init__(self, env: Environment, *, name: str | None = None):
        self.env = env
        self._name = name or env.name

    @property
    def name(self) -> str:
        """The name that `envs.make` knows it by."""
        return self._name

    @property
    def num_actions(self) -> int:
        """Number of actions, or of action dimensions."""
        return self.env.num_actions

    @property
    def default_params(self) -> Any:
        """Parameters of `env`; the time limit is an int32, in steps."""
        params = self.env.default_params
        return params.replace(max_steps_in_episode=np.int32(params.max_steps_in_episode))

    @partial(jax.jit, static_argnames=("self",))
    def step(self, key, state, action, params=None):
        """(obs, state, reward, terminated, truncated, info), into a new episode at an end.

        Goes through `env.step`, not `step_env`: DeepSea keeps statistics across episodes there.
        """
        params = self.default_params if params is None else params
        inner = self._inner(params)
        out = self.env.step(key, state, self._action(action, inner), inner)
        obs, state, reward, terminated, truncated, info = out
        terminated, truncated = jnp.asarray(terminated, bool), jnp.asarray(truncated, bool)
        info = {
            **_discount(terminated),
            "terminated": terminated,
            "truncated": truncated,
            "final_observation": self._obs(info["final_observation"], inner),
        }
        reward = jnp.asarray(reward, jnp.float32)
        return self._obs(obs, inner), strong(state), reward, terminated, truncated, info

    def step_env(self, key, state, action, params):
        """(obs, state, reward, terminated, info), without a time limit or a new episode."""
        inner = self._inner(params)
        out = self.env.step_env(key, state, self._action(action, inner), inner)
        obs, state, reward, terminated, _ = out
        terminated = jnp.asarray(terminated, bool)
        reward = jnp.asarray(reward, jnp.float32)
        return self._obs(obs, inner), strong(state), reward, terminated, _discount(terminated)

    def reset_env(self, key, params):
        """(obs, state) at the start of an episode."""
        inner = self._inner(params)
        obs, state = self.env.reset_env(key, inner)
        return self._obs(obs, inner), strong(state)

    def is_truncated(self, state, params):
        """Whether the time limit is reached."""
        return jnp.asarray(self.env.is_truncated(state, self._inner(params)), bool)

    def observation_space(self, params) -> Box:
        """Box float32 of rank >= 1."""
        space = self.env.observation_space(self._inner(params))
        if isinstance(space, Discrete):
            return Box(0.0, 1.0, (space.n,), jnp.float32)
        return Box(space.low, space.high, space.shape or (1,), jnp.float32)

    def action_space(self, params) -> Box | Discrete:
        """Discrete, or Box float32[n]."""
        space = self.env.action_space(self._inner(params))
        if isinstance(space, Discrete):
            return space
        return Box(space.low, space.high, space.shape or (1,), jnp.float32)

    def _inner(self, params):
        """The parameters as `env` expects them: BernoulliBandit mixes its limit with floats."""
        dtype = jnp.result_type(self.env.default_params.max_steps_in_episode)
        limit = jnp.asarray(params.max_steps_in_episode, dtype)
        return params.replace(max_steps_in_episode=limit)

    def _action(self, action, inner):
        space = self.env.action_space(inner)
        return jnp.reshape(jnp.asarray(action, space.dtype), space.shape)

    def _obs(self, obs, inner):
        space = self.env.observation_space(inner)
        if isinstance(space, Discrete):
            return jax.nn.one_hot(obs, space.n, dtype=jnp.float32)
        if isinstance(space, Box):
            return jnp.asarray(obs, jnp.float32).reshape(space.shape or (1,))
        kind = type(space).__name__
        raise TypeError(f"{self.name} has a {kind} observation space; Uniform takes Box and Discrete.")


def _discount(terminated: jax.Array) -> dict[str, jax.Array]:
    return {"discount": 1.0 - terminated.astype(jnp.float32)}
