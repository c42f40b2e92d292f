"""The suite XLand-MiniGrid (Nikulin et al. 2024, arXiv:2312.12044): its tasks of MiniGrid, seen from the agent's cell."""

# pyright: reportMissingImports=false
from typing import Any

import jax.numpy as jnp
import xminigrid
from gymnax.environments.spaces import Box, Discrete
from xminigrid.core.constants import NUM_COLORS, NUM_TILES
from xminigrid.types import StepType, TimeStep

from envs.suites.adapter import Adapter, one_hot


class XMiniGrid(Adapter):
    """A task of MiniGrid: one goal, and a reward of 1 - 0.9 t / limit where it is reached at step t.

    Observations: float32[25 view^2], zeros and ones: of each cell in the view, view x view, its tile (13) and its colour (12).
    """

    binary_obs = True

    def __init__(self, task: str, **options: Any):
        self.env, self._params = xminigrid.make(f"MiniGrid-{task}", **options)
        super().__init__(f"xminigrid/{task}", self._params.max_steps, **options)

    def start(self, key, params):
        return self._seen(self.env.reset(self._limited(params), key))

    def advance(self, key, inner, action, params):
        del key  # the grid is deterministic
        before = TimeStep(inner, StepType.MID, jnp.float32(0), jnp.float32(1), None)
        after = self.env.step(self._limited(params), before, action)
        return *self._seen(after), after.reward, after.discount == 0.0  # at a time limit it is 1

    def observation_space(self, params) -> Box:
        """Box float32[n]."""
        cells = self._params.view_size**2
        return Box(0.0, 1.0, (cells * (NUM_TILES + NUM_COLORS),), jnp.float32)

    def action_space(self, params=None) -> Discrete:
        """Discrete: forward, right, left, pick up, put down, toggle."""
        return Discrete(self.env.num_actions(self._params))

    def _limited(self, params: Any) -> Any:
        """The suite's parameters. Its reward depends on the time limit."""
        return self._params.replace(max_steps=params.max_steps_in_episode)

    def _seen(self, timestep: TimeStep) -> tuple[Any, ...]:
        """(obs, inner, mask)."""
        return one_hot(timestep.observation, (NUM_TILES, NUM_COLORS)), timestep.state, None


def build(task: str, **options: Any) -> XMiniGrid:
    """What `envs.suites` asks of an adapter; the options are those of `xminigrid.make`, such as `view_size`."""
    return XMiniGrid(task, **options)
