"""Grid worlds of objects to collect: dynamics only. Whatever varies between two worlds is in `Level`.

Reference: Oh et al. 2020, appendix A.1, arXiv:2007.08794; Jackson et al. 2023, appendix C, arXiv:2310.02782.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment

CROSS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # stay, up, down, left, right: (row, column)
SQUARE = tuple((row, column) for row in (-1, 0, 1) for column in (-1, 0, 1))

# name -> (offsets of the moves, offsets of the collecting actions)
ACTIONS: dict[str, tuple[tuple, tuple]] = {
    "cross": (CROSS, ()),  # five moves; what lies in the cell that is entered is collected
    "square": (SQUARE, ()),  # nine moves, likewise
    "collect": (SQUARE, SQUARE),  # nine moves that collect nothing, nine actions that collect from a cell nearby
}


class Level(struct.PyTreeNode):
    """One world. Arrays only, so that a thousand different ones are one vmap.

    `C` cells, row by row, of the largest grid of the family; smaller grids are walled in. `O` objects; an unused one has
    `used` False. Build one with `make_level`, which checks it.
    """

    wall: jax.Array  # bool[C]
    open_cells: jax.Array  # i32[C], the cells that are no wall, then the others
    num_open: jax.Array  # i32[]
    start: jax.Array  # i32[], the agent's first cell; unless `shuffled`
    cell: jax.Array  # i32[O], where each object lies; unless `shuffled`
    used: jax.Array  # bool[O]
    reward: jax.Array  # f32[O], for collecting it
    p_terminate: jax.Array  # f32[O], that the episode ends when it is collected
    p_respawn: jax.Array  # f32[O], each step that it is absent
    shuffled: jax.Array  # bool[], objects and agent start, and objects come back, in random open cells
    max_steps_in_episode: jax.Array  # i32[], the time limit


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
    distribution: str = "custom"  # a name in `envs.levels`, whose worlds these are

    def __post_init__(self):
        for name, low in (("height", 1), ("width", 1), ("num_objects", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, and is {getattr(self, name)}.")
        if self.actions not in ACTIONS:
            raise ValueError(f"actions must be one of {', '.join(ACTIONS)}, and is {self.actions!r}.")
        if self.observation not in ("index", "planes"):
            raise ValueError(f"observation must be 'index' or 'planes', and is {self.observation!r}.")
        if self.observation == "index" and self.num_cells * 2**self.num_objects >= 2**31:
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
    def num_states(self) -> int:
        """Of the integer observation."""
        return self.num_cells * 2**self.num_objects

    @property
    def num_actions(self) -> int:
        return len(sum(ACTIONS[self.actions], ()))

    @property
    def default_params(self) -> Level:
        return self.sample_level(jax.random.key(0))

    def sample_level(self, key: jax.Array) -> Level:
        """A world of this distribution; of a custom family an empty one with an object in its last cell, whatever the key."""
        from envs import levels

        if self.distribution != "custom":
            return levels.sample(key, self.distribution)
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
            bits = jnp.where(state.present, 2 ** jnp.arange(self.num_objects), 0).sum()
            return (state.position + self.num_cells * bits).astype(jnp.int32)
        cells = jnp.arange(self.num_cells)
        objects = (cells[:, None] == state.cell) & state.present
        planes = jnp.concatenate([(cells == state.position)[:, None], params.wall[:, None], objects], axis=-1)
        return planes.astype(jnp.float32).reshape(self.height, self.width, self.num_objects + 2)

    def is_truncated(self, state: GridState, params: Level):
        return state.time >= params.max_steps_in_episode

    def observation_space(self, params: Level):
        if self.observation == "index":
            return spaces.Discrete(self.num_states)
        return spaces.Box(0.0, 1.0, (self.height, self.width, self.num_objects + 2), jnp.float32)

    def action_space(self, params: Level | None = None):
        return spaces.Discrete(self.num_actions)


def _random_cell(level: Level, uniform: jax.Array) -> jax.Array:
    """Open cells i32[...], from uniform numbers in [0, 1)."""
    index = jnp.minimum((uniform * level.num_open).astype(jnp.int32), level.num_open - 1)
    return level.open_cells[index]


def make_level(
    height: int,
    width: int,
    *,
    objects: Any,
    cells: Any = None,
    walls: Any = (),
    start: int | None = None,
    max_steps: int,
    padded: tuple[int, int, int] | None = None,
) -> Level:
    """A world from plain numbers, checked.

    Args:
      objects: [O, 3], each [reward, p_terminate, p_respawn].
      cells: [O], where the objects lie, in cells of the height x width grid counted row by row. None: agent and objects
        start, and objects come back, in random open cells.
      walls: cells that cannot be entered.
      start: the agent's first cell; needed with `cells`.
      max_steps: the time limit of an episode.
      padded: (height, width, O) of the family, if it is larger.

    Raises ValueError, in a sentence, for a world that cannot be.
    """
    objects = np.asarray(objects, np.float64)
    _require(objects.size > 0, "a level needs at least one object, and has none.")
    _require(
        objects.ndim == 2 and objects.shape[1] == 3,
        f"objects must be rows of [reward, p_terminate, p_respawn], and have shape {objects.shape}.",
    )
    _require(
        height >= 1 and width >= 1, f"a level needs a height and a width of at least 1, and has {height} x {width}."
    )
    walls = np.asarray(walls, np.int64).reshape(-1)
    count = height * width
    _require(max_steps >= 1, f"max_steps must be at least 1, and is {max_steps}.")
    off = walls[(walls < 0) | (walls >= count)]
    _require(
        not off.size, f"walls must lie on the {height} x {width} grid, in cells 0 to {count - 1}, and {off[:1]} do not."
    )
    bad = objects[:, 1:][~((objects[:, 1:] >= 0) & (objects[:, 1:] <= 1))]
    _require(not bad.size, f"p_terminate and p_respawn must be probabilities, in [0, 1], and one is {bad[:1]}.")
    _require(bool(np.isfinite(objects[:, 0]).all()), "rewards must be finite, and one is not.")
    free = np.setdiff1d(np.arange(count), walls)
    _require(free.size > 0, f"a level needs a free cell, and walls fill all {count}.")
    _require(start is None or start in free, f"start must be a free cell, and is {start}.")
    if cells is not None:
        cells = np.asarray(cells, np.int64).reshape(-1)
        _require(
            len(cells) == len(objects),
            f"each object needs a cell: there are {len(objects)} objects and {len(cells)} cells.",
        )
        _require(bool(np.isin(cells, free).all()), f"objects must lie in free cells, and cells {cells} do not all.")
        _require(start is not None, "start must be given with the cells of objects.")
    height_, width_, count_ = padded or (height, width, len(objects))
    _require(
        height_ >= height and width_ >= width and count_ >= len(objects),
        f"a family of {height_} x {width_} with {count_} objects is too small for this level.",
    )

    def place(cell):  # the same cell in the padded grid
        return np.asarray(cell) // width * width_ + np.asarray(cell) % width

    wall = np.ones(height_ * width_, bool)
    wall[place(free)] = False
    unused = count_ - len(objects)

    def pad(values, dtype):
        return jnp.asarray(np.concatenate([values, np.zeros(unused)]), dtype)

    return fill_level(
        wall=jnp.asarray(wall),
        start=jnp.int32(place(free[0] if start is None else start)),
        cell=pad(place(np.full(len(objects), free[0]) if cells is None else cells), jnp.int32),
        used=pad(np.ones(len(objects)), bool),
        reward=pad(objects[:, 0], jnp.float32),
        p_terminate=pad(objects[:, 1], jnp.float32),
        p_respawn=pad(objects[:, 2], jnp.float32),
        shuffled=jnp.asarray(cells is None),
        max_steps_in_episode=jnp.int32(max_steps),
    )


def fill_level(*, wall: jax.Array, **fields: jax.Array) -> Level:
    """A level from its free fields; nothing is checked."""
    open_cells = jnp.argsort(wall, stable=True).astype(jnp.int32)
    return Level(wall=wall, open_cells=open_cells, num_open=(~wall).sum().astype(jnp.int32), **fields)


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise ValueError(sentence)


@partial(jax.jit, static_argnums=0)
def is_solvable(env: GridWorld, level: Level) -> jax.Array:
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
def value_iteration(
    env: GridWorld, level: Level, *, gamma: float = 1.0, steps: int | jax.Array | None = None
) -> jax.Array:
    """The optimal value of every state with `steps` still to go (None: a whole episode): f32[num_states], by state number.

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
    env: GridWorld, level: Level, policy: jax.Array, *, gamma: float = 1.0, steps: int | jax.Array | None = None
) -> jax.Array:
    """What every action is worth under a policy f32[num_states, A], with `steps`, at least 1, to go: f32[num_states, A].

    Q_n(s, a) = E[r + gamma (1 - end) V_{n-1}(s')],    V_n(s) = sum_a policy(a|s) Q_n(s, a),    V_0 = 0

    As exact as `value_iteration`, and for the same worlds. Raises ValueError for a policy of another shape.
    """
    if policy.shape != (env.num_states, env.num_actions):
        raise ValueError(f"policy must have shape {(env.num_states, env.num_actions)}, and has {policy.shape}.")
    action_values = _action_values(env, level, gamma)
    chosen = jnp.moveaxis(policy.reshape(-1, env.num_cells, env.num_actions), 0, -1)  # [C, A, 2^O]
    steps = level.max_steps_in_episode if steps is None else steps
    value = jax.lax.fori_loop(1, steps, lambda _, value: (chosen * action_values(value)).sum(1), _no_value(env))
    return jnp.moveaxis(action_values(value), -1, 0).reshape(-1, env.num_actions)


def _no_value(env: GridWorld) -> jax.Array:
    return jnp.zeros((env.num_cells, 2**env.num_objects))


def _action_values(env: GridWorld, level: Level, gamma: float) -> Callable[[jax.Array], jax.Array]:
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


def optimal_return(env: GridWorld, level: Level) -> jax.Array:
    """f32[]: the undiscounted return of the best policy from the start of an episode. NaN for a shuffled level."""
    _, state = GridWorld.reset_env(_as_index(env), jax.random.key(0), level)
    value = value_iteration(env, level)[_as_index(env).observe(state, level)]
    return jnp.where(level.shuffled, jnp.nan, value)


def _as_index(env: GridWorld) -> GridWorld:
    return GridWorld(env.height, env.width, env.num_objects, env.actions, "index", env.distribution)
