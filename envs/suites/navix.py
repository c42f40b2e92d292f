"""The suite NAVIX (Pignatelli et al. 2024, arXiv:2407.19396): MiniGrid in JAX, with the whole grid in view."""

# pyright: reportMissingImports=false
from typing import Any

import jax.numpy as jnp
import navix
from gymnax.environments.spaces import Box, Discrete
from navix.environments.environment import Timestep

from envs.suites.adapter import Adapter, one_hot

SYMBOLS = (11, 6, 4)  # of a cell: entities, colours, and directions or states of a door


class Navix(Adapter):
    """A NAVIX task with the suite's reward.

    Observations: float32[21 H W], zeros and ones: of each cell of the grid its entity (11), its colour (6) and its state (4).
    A number outside of these is zeros: NAVIX 0.7.4 gives the locked door of KeyCorridor the state 254.
    """

    binary_obs = True

    def __init__(self, task: str, **options: Any):
        self.env = navix.make(f"Navix-{task}-v0", **options)
        super().__init__(f"navix/{task}", self.env.max_steps, **options)

    def start(self, key, params):
        return self._seen(self._limited(params).reset(key))

    def advance(self, key, inner, action, params):
        del key  # in the suite's state
        state, time = inner
        zero = jnp.int32(0)
        before = Timestep(t=time, observation=None, action=zero, reward=jnp.float32(0), step_type=zero, state=state)
        after = self._limited(params)._step(before, action)  # `step` is this with the automatic reset
        return *self._seen(after), after.reward, after.is_termination()

    def observation_space(self, params) -> Box:
        """Box float32[n]."""
        return Box(0.0, 1.0, (self.env.height * self.env.width * sum(SYMBOLS),), jnp.float32)

    def action_space(self, params=None) -> Discrete:
        """Discrete: the suite's action set."""
        return Discrete(len(self.env.action_set))

    def _limited(self, params: Any) -> Any:
        return self.env.replace(max_steps=params.max_steps_in_episode)

    def _seen(self, timestep: Timestep) -> tuple[Any, ...]:
        """(obs, inner, mask). The images that a state holds for rendering are left out: they are larger than the rest."""
        inner = timestep.state.replace(cache=None), timestep.t
        return one_hot(timestep.observation, SYMBOLS), inner, None


def build(task: str, **options: Any) -> Navix:
    """What `envs.suites` asks of an adapter; the options are those of `navix.make`, such as `max_steps`."""
    return Navix(task, **options)
