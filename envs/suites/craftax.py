"""The suite Craftax (Matthews et al. 2024, arXiv:2402.16801): survival in worlds that are drawn anew for each episode."""

# pyright: reportMissingImports=false
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from craftax.craftax_env import make_craftax_env_from_name
from flax import struct
from gymnax.environments.spaces import Box, Discrete

from envs.suites.adapter import NEVER, Adapter


@struct.dataclass
class Params:
    """A time limit, and the numbers of the world."""

    max_steps_in_episode: jax.Array  # i32[], steps
    world: Any  # craftax's EnvParams; its own time limit is never reached


class Craftax(Adapter):
    """Craftax, or its smaller version Craftax-Classic, with symbolic observations.

    Observations: those of the suite, float32[n], the map around the player one-hot and the inventory scaled.
    With `expensive_reset` a rollout draws few starts of its own: a world costs as much as many steps.
    """

    expensive_reset = True

    def __init__(self, task: str):
        self.env = make_craftax_env_from_name(f"Craftax-{task}-v1", auto_reset=False)
        super().__init__(f"craftax/{task}", self.env.default_params.max_timesteps)
        self._shape = self.env.observation_space(self.env.default_params).shape

    @property
    def default_params(self) -> Params:
        """The time limit and the world of the suite."""
        world = self.env.default_params.replace(max_timesteps=NEVER)
        return Params(np.int32(self.limit), jax.tree.map(_number, world))

    def start(self, key, params):
        obs, inner = self.env.reset_env(key, params.world)
        return obs, inner, None

    def advance(self, key, inner, action, params):
        obs, inner, reward, terminated, _ = self.env.step_env(key, inner, action, params.world)
        return obs, inner, None, reward, terminated

    def observation_space(self, params) -> Box:
        """Box float32[n]."""
        return Box(0.0, 1.0, self._shape, jnp.float32)

    def action_space(self, params=None) -> Discrete:
        """Discrete; an action that has no effect is valid."""
        return Discrete(self.env.num_actions)


def build(task: str) -> Craftax:
    """What `envs.suites` asks of an adapter."""
    return Craftax(task)


def _number(value: Any) -> np.generic:
    kinds = {bool: np.bool_, int: np.int32, float: np.float32}
    return kinds.get(type(value), np.asarray)(value)
