"""Any gymnax environment, with the differences between them taken out."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments.spaces import Box, Dict, Discrete, Tuple

from envs import spaces
from envs.interface import Environment, capabilities
from envs.spaces import MultiDiscrete


def strong(tree: Any) -> Any:
    """The same values as arrays without weak types, so that they can be a scan's carry."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), tree)


class Uniform(Environment):
    """A gymnax environment whose types do not depend on which one it is.

    Observations: float32 of rank >= 1; a scalar becomes [1], one of n becomes one-hot [n], a Dict or Tuple becomes its parts one
    after another. Frames of uint8 [height, width, channels] or [height, width] stay uint8, and have the channel axis.
    Actions: Discrete, Box float32[n] of any shape flattened, or MultiDiscrete, which a Dict or Tuple of Discrete spaces becomes.
    Reward: float32[].  Flags: bool[].
    State: strongly typed.  info: discount, terminated, truncated, final_observation.
    The dynamics, the use of keys and the capabilities are those of `env`. `binary_obs` may be stated here for an environment that
    does not state it.
    """

    def __init__(self, env: Any, *, name: str | None = None, binary_obs: bool = False):
        self.env = env
        self._name = name or env.name
        stated = capabilities(env)
        self.lifetimes, self.expensive_reset = stated["lifetimes"], stated["expensive_reset"]
        self.binary_obs = binary_obs or stated["binary_obs"]
        self.sample_level = self._sample_level if stated["sample_level"] else None
        self.action_mask = self._action_mask if stated["action_mask"] else None
        self.optimal_return = self._optimal_return if stated["optimal_return"] else None

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

    def _sample_level(self, key):
        params = self.env.sample_level(key)
        return params.replace(max_steps_in_episode=jnp.asarray(params.max_steps_in_episode, jnp.int32))

    def _action_mask(self, state, params):
        return jnp.asarray(self.env.action_mask(state, self._inner(params)), bool)

    def _optimal_return(self, params):
        return self.env.optimal_return(self._inner(params))

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
        """Box float32 of rank >= 1, or uint8 of rank 3."""
        space = self._observation_space(self._inner(params))
        if isinstance(space, Discrete):
            return Box(0.0, 1.0, (space.n,), jnp.float32)
        if isinstance(space, Dict | Tuple | MultiDiscrete):
            return spaces.flat_observation(space) or self._refuse_observation(space)
        if not isinstance(space, Box):
            return self._refuse_observation(space)
        if not np.prod(space.shape):
            return self._refuse_observation(space)
        low, high = (x if np.ndim(x) == 0 else np.reshape(x, _shape(space)) for x in (space.low, space.high))
        return Box(low, high, _shape(space), jnp.uint8 if _are_frames(space) else jnp.float32)

    def action_space(self, params) -> Box | Discrete | MultiDiscrete:
        """Discrete, MultiDiscrete, or Box float32[n]."""
        space = self._action_space(self._inner(params))
        if isinstance(space, Discrete | MultiDiscrete):
            return space
        if isinstance(space, Box) and np.prod(space.shape):
            low, high = (_bound(x, space.shape) for x in (space.low, space.high))
            return Box(low, high, (int(np.prod(space.shape)),), jnp.float32)
        if (product := spaces.choices(space)) is not None:
            return product
        raise ValueError(
            f"{self.name} has {space} as action space: agents act in a Discrete space, a Box, MultiDiscrete, or a Dict or Tuple "
            "of Discrete spaces."
        )

    def _inner(self, params):
        """The parameters as `env` expects them: BernoulliBandit mixes its limit with floats."""
        dtype = jnp.result_type(self.env.default_params.max_steps_in_episode)
        limit = jnp.asarray(params.max_steps_in_episode, dtype)
        return params.replace(max_steps_in_episode=limit)

    def _action_space(self, inner):
        with jax.ensure_compile_time_eval():  # bounds made in the method, as gymnax does, are numbers
            return self.env.action_space(inner)

    def _observation_space(self, inner):
        with jax.ensure_compile_time_eval():
            return self.env.observation_space(inner)

    def _action(self, action, inner):
        space = self._action_space(inner)
        if isinstance(space, Dict | Tuple):
            return spaces.chosen(space, action)
        return jnp.reshape(jnp.asarray(action, space.dtype), space.shape)

    def _obs(self, obs, inner):
        space = self._observation_space(inner)
        if isinstance(space, Discrete):
            return jax.nn.one_hot(obs, space.n, dtype=jnp.float32)
        if isinstance(space, Dict | Tuple | MultiDiscrete):
            return spaces.flatten(space, obs) if spaces.flat_observation(space) else self._refuse_observation(space)
        if isinstance(space, Box):
            return jnp.asarray(obs, jnp.uint8 if _are_frames(space) else jnp.float32).reshape(_shape(space))
        return self._refuse_observation(space)

    def _refuse_observation(self, space):
        raise ValueError(
            f"{self.name} has {space} as observation space: it must be Discrete, MultiDiscrete, a Box with "
            "numbers in it, or a Dict or Tuple of these."
        )


def _are_frames(space: Box) -> bool:
    """Whether observations are images of bytes, which networks divide by 255."""
    return len(space.shape) in (2, 3) and np.dtype(space.dtype) == np.uint8


def _shape(space: Box) -> tuple[int, ...]:
    """Of an observation: at least [1], and [height, width, 1] for frames of one channel."""
    return (*space.shape, 1) if _are_frames(space) and len(space.shape) == 2 else space.shape or (1,)


def _bound(bound: Any, shape: tuple[int, ...]) -> Any:
    """A bound of a Box's numbers, flat. It may depend on the parameters, and then be traced."""
    if np.ndim(bound) == 0 or len(shape) == 1:
        return bound
    with jax.ensure_compile_time_eval():
        return jnp.broadcast_to(bound, shape).reshape(-1)


def _discount(terminated: jax.Array) -> dict[str, jax.Array]:
    return {"discount": 1.0 - terminated.astype(jnp.float32)}
