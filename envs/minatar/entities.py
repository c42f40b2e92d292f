"""Seaquest's moving things: fixed numbers of slots, in which those that are gone leave gaps."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SIZE = 10  # of the board
BITS = {"x": 4, "y": 4, "right": 1, "timer": 4, "shot": 18}  # of an entity's number, see `write`


class Entities(NamedTuple):
    """Those of one kind, oldest first, with gaps where some are gone. Each i32[N], and what this kind lacks is left out."""

    alive: jax.Array  # bool[N]
    x: jax.Array
    y: jax.Array
    right: jax.Array
    timer: jax.Array | None = None  # frames until it moves
    shot: jax.Array | None = None  # frames until it shoots


def total(arrays):
    return functools.reduce(jnp.add, arrays)


def write(entities, slots):
    """(i32[slots, fields], count): the gaps closed. Entities are packed into numbers, whose ranks are their slots."""
    fields = [field for field in entities[1:] if field is not None]
    bits = np.array(list(BITS.values())[: len(fields)])
    shifts = np.cumsum(bits) - bits
    number = total(field << int(shift) for field, shift in zip(fields, shifts, strict=True))
    # the first axis is the one to sum over, which XLA vectorises
    here = entities.alive[:, None] & (_rank(entities.alive)[:, None] == np.arange(slots))
    number = jnp.where(here, number[:, None], 0).sum(0, dtype=jnp.int32)
    return number[:, None] >> shifts & (1 << bits) - 1, entities.alive.sum(dtype=jnp.int32)


def _rank(alive):
    """i32[N]: how many are alive before each; counted in words of 32 bits, much faster than by a cumulative sum."""
    ranks, before = [], 0
    for word in (alive[start : start + 32] for start in range(0, alive.size, 32)):
        bit = np.uint32(1) << np.arange(word.size, dtype=np.uint32)
        bits = jnp.where(word, bit, 0).sum(dtype=jnp.uint32)
        ranks.append(before + jax.lax.population_count(bits & (bit - 1)).astype(jnp.int32))
        before = before + jax.lax.population_count(bits).astype(jnp.int32)
    return jnp.concatenate(ranks)


def rows(entities, behind=0):
    """i32[10]: a bit for each column in which there is one, or that is `behind` one."""
    x = jnp.where(entities.right != 0, entities.x - behind, entities.x + behind)
    here = (entities.alive & (x >= 0) & (x < SIZE))[:, None] & (entities.y[:, None] == np.arange(SIZE))
    return jnp.bitwise_or.reduce(jnp.where(here, 1 << x[:, None], 0), axis=0)


def append(entities, enabled, x, y, right, timer=None, shot=None):
    new = Entities(True, x, y, right, timer, shot)
    count = entities.alive.sum()
    here = enabled & (jnp.arange(entities.alive.shape[0]) == count)
    return jax.tree.map(lambda old, new: jnp.where(here, new, old), entities, new)


def _inside(entities):
    return entities._replace(alive=entities.alive & (entities.x >= 0) & (entities.x < SIZE))


def fly(bullets):
    return _inside(bullets._replace(x=bullets.x + jnp.where(bullets.right != 0, 1, -1)))


def move(entities, interval):
    ready = entities.timer == 0
    x = entities.x + jnp.where(ready, jnp.where(entities.right != 0, 1, -1), 0)
    return _inside(entities._replace(x=x, timer=jnp.where(ready, interval, jnp.maximum(entities.timer - 1, 0))))


def collide(bullets, targets):
    """Each bullet strikes the first target in its place, and only the last bullet to strike a target is gone with it."""
    shot, target = np.arange(bullets.alive.shape[0])[:, None], np.arange(targets.alive.shape[0])
    same = (bullets.x[:, None] == targets.x) & (bullets.y[:, None] == targets.y)
    same &= bullets.alive[:, None] & targets.alive
    first = jnp.where(same, target, target.size).min(-1, keepdims=True)
    struck = same & (target == first)
    last = struck & (shot == jnp.where(struck, shot, -1).max(0))
    gone = last.any(0)
    bullets = bullets._replace(alive=bullets.alive & ~last.any(1))
    targets = targets._replace(alive=targets.alive & ~gone)
    return bullets, targets, gone.sum(dtype=jnp.float32)
