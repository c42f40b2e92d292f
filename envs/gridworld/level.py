"""One grid world: what varies between two of them, as arrays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


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
