"""The dynamics of grid worlds of objects to collect. Whatever varies between two worlds is in `Level`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import spaces

from envs.gridworld.level import Level, make_level
from envs.gridworld.planning import optimal_return, state_number
from envs.interface import Environment, Lifetimes

CROSS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # stay, up, down, left, right: (row, column)
SQUARE = tuple((row, column) for row in (-1, 0, 1) for column in (-1, 0, 1))

# name -> (offsets of the moves, offsets of the collecting actions)
ACTIONS: dict[str, tuple[tuple, tuple]] = {
    "cross": (CROSS, ()),  # five moves; what lies in the cell that is entered is collected
    "square": (SQUARE, ()),  # nine moves, likewise
    "collect": (SQUARE, SQUARE),  # nine moves that collect nothing, nine actions that collect from a cell nearby
}


class GridState(struct.PyTreeNode):
    position: jax.Array  # i32[], the agent's cell
    present: jax.Array  # bool[O]
    cell: jax.Array  # i32[O]
    time: jax.Array  # i32[], steps taken


@dataclass(frozen=True)
class GridWorld(Environment):
    """A family of worlds that share a size, a number of objects and a set of actions.

    A step moves the agent (a wall or the edge holds it where it is), collects, ends the episode with the probability that
    the collected objects sum to, and lets absent objects come back; one collected just now does not. Several objects may lie
    in one cell, the agent's included, and are collected together.

    Observations, by `observation`:
      "index": one integer, cell + C * (the presence bits of the objects): what a tabular agent looks up. Objects that move
        between cells do not fit into it.
      "planes": f32[height, width, O + 2]: the agent, the walls, and a plane for each object.
    """

    height: int
    width: int
    num_objects: int
    actions: Literal["cross", "square", "collect"] = "cross"
    observation: Literal["index", "planes"] = "index"
    distribution: str = "custom"  # the name of the family
    sampler: Callable[[jax.Array], Level] | None = None  # draws a level of the family, from a key; compared by equality
    lifetimes: Lifetimes | None = None  # of the agents of the family

    def __post_init__(self):
        for name, low in (("height", 1), ("width", 1), ("num_objects", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, and is {getattr(self, name)}.")
        if self.actions not in ACTIONS:
            raise ValueError(f"actions must be one of {', '.join(ACTIONS)}, and is {self.actions!r}.")
        if self.observation not in ("index", "planes"):
            raise ValueError(f"observation must be 'index' or 'planes', and is {self.observation!r}.")
        if self.observation == "index" and self.num_world_states >= 2**31:
            raise ValueError(
                f"{self.num_objects} objects on {self.num_cells} cells have more states than an integer can number: "
                "use observation='planes'."
            )

    @property
    def name(self) -> str:
        return f"gridworld/{self.distribution}"

    @property
    def num_cells(self) -> int:
        return self.height * self.width

    @property
    def num_world_states(self) -> int:
        """Cells of the agent times sets of present objects; whatever the observation."""
        return self.num_cells * 2**self.num_objects

    @property
    def num_states(self) -> int | None:
        """Of the integer observation; None of planes."""
        return self.num_world_states if self.observation == "index" else None

    @property
    def optimal_return(self) -> Callable[[Level], jax.Array] | None:
        """The function `optimal_return` of this world; None where observations are planes, whose objects may move."""
        return partial(optimal_return, self) if self.observation == "index" else None

    @property
    def num_actions(self) -> int:
        return len(sum(ACTIONS[self.actions], ()))

    @property
    def default_params(self) -> Level:
        return self.sample_level(jax.random.key(0))

    def sample_level(self, key: jax.Array) -> Level:
        """A level of this family; without a sampler an empty one with an object in its last cell, whatever the key."""
        if self.sampler is not None:
            return self.sampler(key)
        size, padded = (self.height, self.width), (self.height, self.width, self.num_objects)
        last = self.num_cells - 1
        return make_level(*size, objects=[[1.0, 1.0, 0.0]], cells=[last], start=0, max_steps=100, padded=padded)

    def reset_env(self, key, params: Level):
        state = self._start(key, params)
        return self.observe(state, params), state

    def _start(self, key, params: Level) -> GridState:
        """A new episode; in a shuffled level, agent and objects are where they were never before."""
        uniform = jax.random.uniform(key, (self.num_objects + 1,))
        anywhere = _random_cell(params, uniform)
        return GridState(
            position=jnp.where(params.shuffled, anywhere[-1], params.start),
            present=params.used,
            cell=jnp.where(params.shuffled, anywhere[:-1], params.cell),
            time=jnp.int32(0),
        )

    def step_env(self, key, state: GridState, action, params: Level):
        uniform = jax.random.uniform(key, (2 * self.num_objects + 1,))
        end, back, where = uniform[0], uniform[1 : self.num_objects + 1], uniform[self.num_objects + 1 :]
        target, collected_cell = self.effect(params, state.position, action)
        collected = state.present & (state.cell == collected_cell)
        reward = jnp.where(collected, params.reward, 0.0).sum()
        terminated = end < jnp.where(collected, params.p_terminate, 0.0).sum()
        returned = params.used & ~state.present & (back < params.p_respawn)
        cell = jnp.where(returned & params.shuffled, _random_cell(params, where), state.cell)
        after = GridState(target, (state.present & ~collected) | returned, cell, state.time + 1)
        info = {"discount": 1.0 - terminated.astype(jnp.float32)}
        return self.observe(after, params), after, reward, terminated, info

    def effect(self, params: Level, position: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(the cell an action leads to, the cell it collects from, or -1)."""
        moves, collects = ACTIONS[self.actions]
        target, inside = self._neighbour(position, jnp.asarray(moves + collects, jnp.int32)[action])
        if not collects:
            target = jnp.where(inside & ~params.wall[target], target, position)
            return target, target
        moving = action < len(moves)
        entered = jnp.where(moving & inside & ~params.wall[target], target, position)
        return entered, jnp.where(~moving & inside, target, -1)

    def _neighbour(self, cell: jax.Array, offset: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(the cell that far away, or some cell where that is off the grid; whether it is on it)."""
        row, column = cell // self.width + offset[0], cell % self.width + offset[1]
        inside = (row >= 0) & (row < self.height) & (column >= 0) & (column < self.width)
        return jnp.where(inside, row * self.width + column, cell), inside

    def observe(self, state: GridState, params: Level) -> jax.Array:
        """i32[], or f32[height, width, O + 2]."""
        if self.observation == "index":
            return state_number(self, state.position, state.present)
        cells = jnp.arange(self.num_cells)
        objects = (cells[:, None] == state.cell) & state.present
        planes = jnp.concatenate([(cells == state.position)[:, None], params.wall[:, None], objects], axis=-1)
        return planes.astype(jnp.float32).reshape(self.height, self.width, self.num_objects + 2)

    def is_truncated(self, state: GridState, params: Level):
        return state.time >= params.max_steps_in_episode

    def observation_space(self, params: Level):
        if self.observation == "index":
            return spaces.Discrete(self.num_world_states)
        return spaces.Box(0.0, 1.0, (self.height, self.width, self.num_objects + 2), jnp.float32)

    def action_space(self, params: Level | None = None):
        return spaces.Discrete(self.num_actions)


def _random_cell(level: Level, uniform: jax.Array) -> jax.Array:
    """Open cells i32[...], from uniform numbers in [0, 1)."""
    index = jnp.minimum((uniform * level.num_open).astype(jnp.int32), level.num_open - 1)
    return level.open_cells[index]
