"""MAP-Elites: its settings, and its archive, a grid whose cells each hold the best objective of one kind of behaviour.

QDax has this algorithm for JAX too. It requires TensorFlow Probability, of which users report that its releases cannot be
imported under JAX 0.7 and later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from discover.searches.behaviour import DESCRIPTORS
from discover.searches.config import SearchConfig
from envs import plugs

PyTree = Any


@dataclass(frozen=True)
class MapElitesConfig(SearchConfig):
    """MAP-Elites (Mouret and Clune 2015, arXiv:1504.04909): the best objective for each kind of behaviour of the agents."""

    population: int = 16  # candidates per generation
    lives: int = 1  # agents trained per candidate and environment, each from another key
    descriptors: tuple[str, ...] = ("log_kl", "entropy")  # of behaviour, by name, or yours as module:NAME
    grid: tuple[int, ...] = (8, 8)  # cells along each descriptor
    bounds: tuple[float, ...] = ()  # low and high of each descriptor in turn; empty: the descriptors' own
    start_sigma: float = 0.5  # standard deviation of the first candidates around the start; candidate 0 is the start
    iso_sigma: float = 0.1  # standard deviation of the perturbation of each leaf of a parent
    line_sigma: float = 0.2  # standard deviation of the step towards a second parent, in units of their difference

    unit: ClassVar[str] = "candidates"

    def __post_init__(self):
        self.check_chunk()
        for name in ("population", "lives"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, and is {getattr(self, name)}.")
        for name in ("descriptors", "grid", "bounds"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.descriptors or len(set(self.descriptors)) < len(self.descriptors):
            raise ValueError(f"descriptors must name at least one, and each once, and are {self.descriptors}.")
        for name in self.descriptors:
            DESCRIPTORS.require(name)
        if len(self.grid) != len(self.descriptors) or any(cells < 1 for cells in self.grid):
            raise ValueError(
                f"grid must have a number of at least 1 for each of the {len(self.descriptors)} descriptors, and is {self.grid}."
            )
        ends = list(zip(self.bounds[::2], self.bounds[1::2], strict=False))
        fits = len(self.bounds) in (0, 2 * len(self.descriptors)) and all(map(math.isfinite, self.bounds))
        if not fits or any(low >= high for low, high in ends):
            raise ValueError(
                f"bounds must be empty, or a low and a higher number for each of the {len(self.descriptors)} descriptors, and "
                f"are {self.bounds}."
            )
        for name in ("start_sigma", "iso_sigma", "line_sigma"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, and is {getattr(self, name)}.")

    @property
    def items(self) -> int:
        return self.population

    @property
    def ranges(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(low, high) of the descriptors."""
        if self.bounds:
            return self.bounds[::2], self.bounds[1::2]
        found = [DESCRIPTORS[name] for name in self.descriptors]
        return tuple(each.low for each in found), tuple(each.high for each in found)

    @property
    def lives_per_item(self) -> int:
        return self.lives

    def build(self, problem):
        return plugs.resolve("discover.searches.map_elites_search:MapElitesSearch")(self, problem)


class Archive(struct.PyTreeNode):
    """The elites of a grid of C cells, the last descriptor along the fastest axis. Arrays only."""

    objectives: PyTree  # leaves [C, ...]; of an empty cell, those of the start
    score: jax.Array  # f32[C], higher is better; minus infinity where the cell is empty
    returns: jax.Array  # f32[C, E], by environment; NaN where the cell is empty
    descriptors: jax.Array  # f32[C, D], of the elite itself; NaN where the cell is empty
    born: jax.Array  # i32[C], the generation, from 0, that found the elite; -1 where the cell is empty

    @property
    def filled(self) -> jax.Array:
        """bool[C]."""
        return self.born >= 0


class Candidates(struct.PyTreeNode):
    """What a generation found."""

    objectives: PyTree  # leaves [P, ...]
    score: jax.Array  # f32[P]; minus infinity where an agent diverged
    returns: jax.Array  # f32[P, E]
    descriptors: jax.Array  # f32[P, D]


def empty(template: PyTree, *, cells: int, environments: int, descriptors: int) -> Archive:
    """An archive without elites."""
    return Archive(
        objectives=jax.tree.map(lambda x: jnp.broadcast_to(x, (cells, *jnp.shape(x))), template),
        score=jnp.full(cells, -jnp.inf, jnp.float32),
        returns=jnp.full((cells, environments), jnp.nan, jnp.float32),
        descriptors=jnp.full((cells, descriptors), jnp.nan, jnp.float32),
        born=jnp.full(cells, -1, jnp.int32),
    )


def cell_of(descriptors: jax.Array, *, low: jax.Array, high: jax.Array, grid: tuple[int, ...]) -> jax.Array:
    """i32[...]: the cell of descriptors f32[..., D]. Those outside of the range belong to the outermost cells."""
    share = (jnp.clip(descriptors, low, high) - low) / (high - low)
    sizes = jnp.asarray(grid)
    place = jnp.clip((jnp.nan_to_num(share) * sizes).astype(jnp.int32), 0, sizes - 1)
    strides = jnp.asarray([math.prod(grid[d + 1 :]) for d in range(len(grid))], jnp.int32)
    return (place * strides).sum(-1)


def inserted(archive: Archive, found: Candidates, *, cells: jax.Array, generation: jax.Array) -> Archive:
    """The archive after candidates, one after another, have taken the cells i32[P] in which their score is higher.

    A candidate with a score or a descriptor that is not finite takes none. Of equal scores the earlier one stays.
    """
    valid = jnp.isfinite(found.score) & jnp.isfinite(found.descriptors).all(-1)
    born = jnp.full(cells.shape, generation, jnp.int32)
    new = Archive(found.objectives, found.score, found.returns, found.descriptors, born)

    def insert(archive, item):
        candidate, cell, allowed = item
        better = allowed & (candidate.score > archive.score[cell])
        return jax.tree.map(lambda x, y: x.at[cell].set(jnp.where(better, y, x[cell])), archive, candidate), None

    return jax.lax.scan(insert, archive, (new, cells, valid))[0]


def varied(
    key: jax.Array, archive: Archive, *, template: PyTree, count: int, start: float, iso: float, line: float
) -> PyTree:
    """Candidates [P, ...]: children of random elites; of an empty archive, the template and perturbations of it.

        x = x_i + iso z + line w (x_j - x_i),    z ~ N(0, I), w ~ N(0, 1)

    i and j are elites, drawn uniformly. Reference: "Iso+LineDD", Vassiliades and Mouret 2018, arXiv:1804.03906.
    """
    chance = archive.filled / jnp.maximum(archive.filled.sum(), 1)
    known = archive.filled.any()

    def child(p):
        parent_key, line_key, leaf_key = jax.random.split(jax.random.fold_in(key, p), 3)
        i, j = jax.random.categorical(parent_key, jnp.log(chance), shape=(2,))
        w = line * jax.random.normal(line_key)
        structure = jax.tree.structure(template)
        keys = jax.tree.unflatten(structure, list(jax.random.split(leaf_key, structure.num_leaves)))

        def leaf(k, x, first):
            z = jax.random.normal(k, jnp.shape(first))
            around = first + jnp.where(p == 0, 0.0, start) * z
            return jnp.where(known, x[i] + iso * z + w * (x[j] - x[i]), around)

        return jax.tree.map(leaf, keys, archive.objectives, template)

    return jax.vmap(child)(jnp.arange(count))
