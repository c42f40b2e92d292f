"""Named distributions over grid worlds, each with the lifetimes of the agents that live there.

    env, level = envs.make("gridworld/all")
    level = envs.levels.sample(key, "all")

References: Oh et al. 2020, appendix A.1, arXiv:2007.08794 (the five tabular levels); Jackson et al. 2023, appendix C,
arXiv:2310.02782 (random worlds), and Jackson et al. 2024, arXiv:2402.05828 (random lifetimes); the mazes are those that
minimax collects, Jiang et al. 2023, arXiv:2311.12716. Where the code of the last three differs from the papers, its version
has the name `groove_...`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from envs.gridworld import GridWorld, Level, fill_level, make_level
from envs.interface import Lifetimes
from envs.sampling import log_uniform, log_uniform_int

UPDATE = 64 * 20  # environment steps in one update of the papers' agents, the unit of their lifetimes


@dataclass(frozen=True)
class Distribution:
    """Worlds of one family. `env.lifetimes` is how long their agents live."""

    env: GridWorld
    sample: Callable[[jax.Array], Level]


class _Fixed:
    """One of the papers' levels: what lies in it is given; where, is drawn."""

    def __init__(self, height, width, objects, max_steps, walls=(), shuffled=False):
        self.size, self.objects, self.max_steps = (height, width), objects, max_steps
        self.walls, self.shuffled = walls, shuffled

    def template(self, padded: tuple[int, int, int]) -> Level:
        height, width = self.size
        level = make_level(
            height, width, objects=self.objects, walls=self.walls, max_steps=self.max_steps, padded=padded
        )
        return level.replace(shuffled=jnp.asarray(self.shuffled))


def _wall(rows: range, columns: range, width: int, gaps: tuple = ()) -> list[int]:
    return [row * width + column for row in rows for column in columns if (row, column) not in gaps]


_CROSSED = _wall(range(11), range(5, 6), 11, ((0, 5), (7, 5))) + _wall(range(4, 5), range(11), 11, ((4, 2), (4, 8)))
_GOOD, _BAD = [1.0, 0.0, 0.05], [-1.0, 0.5, 0.1]

# [reward, p_terminate, p_respawn] of each object.
TABULAR = {
    "dense": _Fixed(11, 11, [_GOOD, _GOOD, _BAD, [-1.0, 0.0, 0.5]], 500),
    "sparse": _Fixed(13, 13, [[1.0, 1.0, 0.0], [-1.0, 1.0, 0.0]], 50),
    "long": _Fixed(11, 11, 2 * [[1.0, 0.0, 0.01]] + 2 * [[-1.0, 0.5, 1.0]], 1000),
    "longer": _Fixed(9, 9, 2 * [[1.0, 0.1, 0.01]] + 5 * [[-1.0, 0.8, 1.0]], 2000),
    "long_dense": _Fixed(11, 11, 4 * [[1.0, 0.0, 0.005]], 2000),
}
GROOVE_CODE = {
    "groove_longer": _Fixed(
        9,
        9,
        2 * [[1.0, 0.1, 0.01]] + 3 * [[-1.0, 0.8, 1.0]],
        2000,
        walls=_wall(range(9), range(4, 5), 9, ((1, 4), (7, 4))),
    ),
    "groove_long_dense": _Fixed(11, 11, 4 * [[1.0, 0.0, 0.005]], 2000, walls=sorted(set(_CROSSED))),
}
SHUFFLED = {  # objects and agent begin, and objects come back, anywhere
    "rand_dense": _Fixed(11, 11, TABULAR["dense"].objects, 500, shuffled=True),
    "rand_long": _Fixed(11, 11, TABULAR["long"].objects, 1000, shuffled=True),
    "rand_small": _Fixed(7, 7, 2 * [_GOOD] + 2 * [_BAD], 500, walls=(9, 25), shuffled=True),
    "rand_sparse": _Fixed(7, 7, [[1.0, 1.0, 1.0]] + 2 * [[-1.0, 1.0, 1.0]], 50, shuffled=True),
    "rand_very_dense": _Fixed(11, 11, [[1.0, 0.0, 1.0]], 2000, shuffled=True),
}


@dataclass(frozen=True)
class _Random:
    """Worlds drawn whole."""

    sizes: tuple[int, int]  # of a square grid, uniform
    objects: tuple[int, int]  # how many, uniform
    walls: int  # drawn among the cells of the largest grid: the density is the same at every size
    max_steps: tuple[int, int]  # log-uniform

    def sample(self, key: jax.Array) -> Level:
        keys = iter(jax.random.split(key, 9))
        largest, most = self.sizes[1], self.objects[1]
        cells = jnp.arange(largest**2)
        size = jax.random.randint(next(keys), (), self.sizes[0], largest + 1)
        outside = (cells // largest >= size) | (cells % largest >= size)
        wall = outside | (jax.random.permutation(next(keys), cells) < self.walls)
        count = jax.random.randint(next(keys), (), self.objects[0], most + 1)
        reward = jax.random.uniform(next(keys), (most,), minval=-1.0)
        return _place(
            next(keys),
            fill_level(
                wall=wall,
                start=jnp.int32(0),
                cell=jnp.zeros(most, jnp.int32),
                used=jnp.arange(most) < count,
                reward=reward.at[0].set(jnp.abs(reward[0])),
                p_terminate=log_uniform(next(keys), 1e-2, 1.0, (most,)),
                p_respawn=log_uniform(next(keys), 1e-3, 1e-1, (most,)),
                shuffled=jnp.asarray(False),
                max_steps_in_episode=log_uniform_int(next(keys), *self.max_steps),
            ),
        )


RANDOM = {
    "small": _Random((4, 6), (1, 3), 7, (20, 100)),
    "medium": _Random((6, 8), (2, 4), 10, (100, 250)),
    "large": _Random((8, 10), (2, 5), 15, (250, 750)),
    "all": _Random((4, 10), (1, 5), 15, (20, 750)),
}

# Thirteen rows of thirteen bits, each as a hexadecimal number; the leftmost cell is the highest bit, and 1 is a wall.
MAZES = {
    "sixteen_rooms": "248 8 240 176e 200 48 1add 208 240 f6b 248 40 208",
    "sixteen_rooms_2": "208 48 248 1edd 240 48 17df 248 200 1b6f 248 40 248",
    "labyrinth": "0 ffe 802 bfa a0a aea aaa aaa 88a ffa 82 1ebe 80",
    "labyrinth_flipped": "0 ffe 802 bfa a0a aea aaa aaa a22 bfe 820 faf 20",
    "labyrinth_2": "800 bfe a02 afa a8a 2aa 1eaa 2ea a0a bfa 802 ffe 0",
    "standard_maze": "84 ef6 800 ff7 10 1fbe 120 c6f 522 15ba 1488 16ee 228",
    "standard_maze_2": "284 af1 804 ff7 254 1ad4 a16 b72 93a daa 8aa aaa 220",
    "standard_maze_3": "140 f5e 850 3d5 1a14 2d6 a92 abb 8a8 eae 8a2 baa 888",
    "small_corridor": "0 aaa aaa aaa aaa aaa ffe aaa aaa aaa aaa aaa 0",
}


@dataclass(frozen=True)
class _Maze:
    rows: str

    def template(self) -> Level:
        bits = np.array([[int(bit) for bit in f"{int(row, 16):013b}"] for row in self.rows.split()])
        walls = np.flatnonzero(bits)
        level = make_level(13, 13, objects=[[1.0, 0.5, 0.01]] * 3, walls=walls, max_steps=50)
        return level.replace(shuffled=jnp.asarray(False))

    @staticmethod
    def redraw(key: jax.Array, level: Level) -> Level:
        keys = jax.random.split(key, 4)
        return level.replace(
            reward=jax.random.uniform(keys[0], (3,)),
            p_terminate=log_uniform(keys[1], 1e-2, 1.0, (3,)),
            p_respawn=log_uniform(keys[2], 1e-3, 1e-1, (3,)),
            max_steps_in_episode=log_uniform_int(keys[3], 25, 50),
        )


LIFETIMES = {  # in updates
    **dict.fromkeys((*TABULAR, *GROOVE_CODE, "tabular", *MAZES, "mazes", "large"), (2500, 2500)),
    **dict.fromkeys(SHUFFLED, (25_000, 25_000)),
    "small": (250, 250),
    "medium": (1000, 1000),
    "all": (1000, 1000),
    "all_shortlife": (250, 250),
    "all_vrandlife": (10, 250),
    "small_vrandlife": (10, 250),
}
NAMES = tuple(LIFETIMES)


def available() -> tuple[str, ...]:
    """Names that `sample` takes; `envs.make` takes them after "gridworld/"."""
    return NAMES


def sample(key: jax.Array, name: str) -> Level:
    """One world of a distribution by name; pure, so that it can be jitted and mapped over keys.

    Raises ValueError, in a sentence, for an unknown name.
    """
    return distribution(name).sample(key)


@dataclass(frozen=True)
class Sampler:
    """`sample` for one name. Samplers of the same name are equal, so environments that hold them share compiled programs."""

    name: str

    def __call__(self, key: jax.Array) -> Level:
        return sample(key, self.name)


def sample_lifetime(key: jax.Array, name: str) -> jax.Array:
    """f32[], environment steps: how long an agent lives in a world of this distribution."""
    distribution(name)  # raises for an unknown name
    return _lifetimes(name).sample(key)


@cache
def distribution(name: str) -> Distribution:
    """The family and the sampler of a distribution by name. Raises as `sample` does."""
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(NAMES)}."
        raise ValueError(f"Unknown grid worlds {name!r}: {hint}")
    with jax.ensure_compile_time_eval():
        env, sampler = _build(name)
    return Distribution(env, sampler)


def _lifetimes(name: str) -> Lifetimes:
    low, high = LIFETIMES[name]
    return Lifetimes(low * UPDATE, high * UPDATE, UPDATE)


def _build(name: str) -> tuple[GridWorld, Callable[[jax.Array], Level]]:
    family = partial(GridWorld, distribution=name, sampler=Sampler(name), lifetimes=_lifetimes(name))
    if name in MAZES or name == "mazes":
        mazes = [_Maze(MAZES[name])] if name in MAZES else [_Maze(rows) for rows in MAZES.values()]
        return family(13, 13, 3), _among([maze.template() for maze in mazes], _Maze.redraw)
    if name.split("_")[0] in RANDOM:
        worlds = RANDOM[name.split("_")[0]]
        size = worlds.sizes[1]
        return family(size, size, worlds.objects[1]), worlds.sample
    fixed = list(TABULAR.values()) if name == "tabular" else [{**TABULAR, **GROOVE_CODE, **SHUFFLED}[name]]
    padded = tuple(int(size) for size in np.max([(*f.size, len(f.objects)) for f in fixed], axis=0))
    observation = "planes" if name in SHUFFLED else "index"
    return family(*padded, observation=observation), _among([f.template(padded) for f in fixed])


def _among(templates: list[Level], redraw: Callable[[jax.Array, Level], Level] = lambda _, level: level):
    """A sampler that picks a template, draws again what `redraw` does, and places agent and objects."""
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *templates)

    def draw(key: jax.Array) -> Level:
        which_key, redraw_key, place_key = jax.random.split(key, 3)
        which = jax.random.randint(which_key, (), 0, len(templates))
        level = jax.tree.map(lambda leaf: jnp.asarray(leaf)[which], stacked)
        return _place(place_key, redraw(redraw_key, level))

    return draw


def _place(key: jax.Array, level: Level) -> Level:
    """Agent and objects in random open cells, to stay there; different ones, as far as there are enough."""
    order = jnp.argsort(jax.random.uniform(key, level.wall.shape) + level.wall)
    cells = order[jnp.arange(level.cell.shape[0] + 1) % level.num_open].astype(jnp.int32)
    return level.replace(start=cells[-1], cell=cells[:-1])
