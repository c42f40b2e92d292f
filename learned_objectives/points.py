"""The points at which the laws of a drift are checked: a lattice, and random points in all four inputs.

`K` rows, each with one `Progress` and `P` pairs of log r and A.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

ADVANTAGES = (-8.0, -3.0, -1.0, -0.3, -0.01, 0.0, 0.01, 0.3, 1.0, 3.0, 8.0)
FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
LIFETIME = 1_000_000.0  # environment steps, of the lattice
MAX_ADVANTAGE = 100.0  # an advantage normalised over n samples is at most sqrt(n - 1): n = 10,001
LIFETIMES = (1e1, 1e10)  # environment steps: the range of random lifetimes
ROUND_LIFETIMES = (*(n / 2 * 10.0**i for n in range(2, 20) for i in range(1, 10)), *(2.0**i for i in range(4, 34)))
ROLLOUTS = (128, 256, 512, 1024, 1280, 2048, 4096, 8192, 20480)  # common sizes, in environment steps
# A life is a whole number of rollouts: an agent that is given 500,000 steps takes 976 * 512 = 499,712.
LIVES = tuple((size, m * 10**i // size * size) for size in ROLLOUTS for m in range(1, 10) for i in range(3, 10))
LIVES = tuple((size, life) for size, life in LIVES if life)
PER_ROW = 128
BATCH = 512  # samples of a row of `batches`
SPREADS = (1e-3, 1e-2, 1e-1, None)  # of log r, the standard deviation in a row of `batches`; None: of all scales
ROUNDS = 32  # of the search for smaller values


class Points(NamedTuple):
    step: np.ndarray  # f32[K], environment steps taken
    lifetime: np.ndarray  # f32[K], environment steps of the whole life
    log_ratio: np.ndarray  # f32[K, P]
    advantage: np.ndarray  # f32[K, P]


@lru_cache(maxsize=8)
def lattice(max_log_ratio: float) -> Points:
    """Products of round numbers, |log r| up to 2, or `max_log_ratio` if that is less; rows end with the last point repeated."""
    reach = min(max_log_ratio, 2.0)
    log_ratio, advantage = np.meshgrid(np.linspace(-reach, reach, 81), ADVANTAGES, indexing="ij")
    fill = -log_ratio.size % PER_ROW
    log_ratio, advantage = (
        np.pad(x.ravel(), (0, fill), mode="edge").reshape(-1, PER_ROW) for x in (log_ratio, advantage)
    )
    fraction = np.repeat(FRACTIONS, len(log_ratio))
    log_ratio, advantage = (np.tile(x, (len(FRACTIONS), 1)) for x in (log_ratio, advantage))
    return _float32(fraction * LIFETIME, np.full(len(fraction), LIFETIME), log_ratio, advantage)


@lru_cache(maxsize=8)
def scattered(max_log_ratio: float, rows: int) -> Points:
    """Random points, in every life of LIVES and in others; log r dense near 0 and in a clip's range."""
    rng = np.random.default_rng(0)
    parts = (_lives(rng), _anywhere(rng, rows - len(LIVES)))
    order, shape = rng.permutation(rows), (rows, PER_ROW)
    step, lifetime = (np.concatenate(x)[order] for x in zip(*parts, strict=True))
    return _float32(step, lifetime, _log_ratios(rng, shape, max_log_ratio), _advantages(rng, shape))


def _lives(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """n and N, one for each of LIVES: n is the second rollout's, the last's, or any other's."""
    size, lifetime = np.array(LIVES, float).T
    last = lifetime - size
    steps = [np.minimum(size, last), last, np.floor(rng.random(len(size)) * lifetime / size) * size]
    return _mixed(rng, steps, (0.4, 0.2, 0.4)), lifetime


def _anywhere(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """n and N: half of the rows with a round n/N, a round N, or both, and some early in a life."""
    fraction = (np.arange(rows) + rng.random(rows)) / rows  # in strata, so that no interval is left out
    round_fraction = rng.choice([*np.linspace(0.0, 1.0, 101), 1 / 3, 2 / 3], rows)
    early = 10.0 ** rng.uniform(-6.0, -1.0, rows)
    fraction = _mixed(rng, [fraction, round_fraction, early], (0.65, 0.25, 0.1))
    lifetime = np.exp(rng.uniform(*np.log(LIFETIMES), rows))
    some = rng.permutation(rows)[: rows * 3 // 10]
    lifetime[some] = np.resize(ROUND_LIFETIMES, len(some))  # in turn, so that none is left out
    return fraction * lifetime, lifetime


@lru_cache(maxsize=8)
def batches(max_log_ratio: float, rows: int) -> Points:
    """Batches as training sees them: log r of one scale, and A normalised. Every fourth row is of all scales in both."""
    rng = np.random.default_rng(2)
    shape = (rows, BATCH)
    spread = np.resize([spread or 0.0 for spread in SPREADS], rows)[:, None]
    log_ratio, advantage = rng.normal(size=(2, *shape))
    log_ratio = np.clip(log_ratio * spread, -max_log_ratio, max_log_ratio)
    advantage = (advantage - advantage.mean(1, keepdims=True)) / advantage.std(1, keepdims=True)
    log_ratio = np.where(spread, log_ratio, _log_ratios(rng, shape, max_log_ratio))
    advantage = np.where(spread, advantage, _advantages(rng, shape))
    return _float32(*_anywhere(rng, rows), log_ratio, advantage)


def _log_ratios(rng: np.random.Generator, shape: tuple[int, int], reach: float) -> np.ndarray:
    sign = rng.choice([-1.0, 1.0], shape)
    kinds = [
        sign * 10.0 ** rng.uniform(-7.0, 0.0, shape),  # near ratio 1, at every scale
        rng.uniform(-0.5, 0.5, shape),  # where a clip begins to bind
        rng.uniform(-2.0, 2.0, shape),
        rng.uniform(-reach, reach, shape),
        np.log(rng.integers(1, 100, shape) / 20.0),  # round ratios, from 0.05 to 4.95
    ]
    return np.clip(_mixed(rng, kinds, (0.25, 0.3, 0.2, 0.15, 0.1)), -reach, reach)


def _advantages(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    sign = rng.choice([-1.0, 1.0], shape)
    kinds = [
        rng.normal(size=shape),
        rng.uniform(-10.0, 10.0, shape),
        rng.uniform(-MAX_ADVANTAGE, MAX_ADVANTAGE, shape),
        sign * 10.0 ** rng.uniform(-6.0, 1.0, shape),
        sign * 10.0 ** rng.uniform(-12.0, -6.0, shape),
        rng.integers(-20, 21, shape) / 2.0,  # round ones, 0 among them
    ]
    return _mixed(rng, kinds, (0.3, 0.2, 0.2, 0.17, 0.03, 0.1))


def _mixed(rng: np.random.Generator, kinds: list[np.ndarray], shares: tuple[float, ...]) -> np.ndarray:
    return np.choose(rng.choice(len(kinds), kinds[0].shape, p=shares), kinds)


def _float32(*arrays: np.ndarray) -> Points:
    return Points(*(np.asarray(x, np.float32) for x in arrays))


@lru_cache(maxsize=8)
def search_steps() -> np.ndarray:
    """f32[ROUNDS, PER_ROW, 4], in log r, A, n/N and log N: normal, at scales of 1e-6 to 1.

    A row shares its step in n/N and N, which is zero in half of the rounds; many points move in log r or A alone.
    """
    rng = np.random.default_rng(1)
    shape = (ROUNDS, PER_ROW, 4)
    steps = rng.normal(size=shape) * 10.0 ** rng.uniform(-6.0, 0.0, shape) * np.array([1.0, 10.0, 1.0, 10.0])
    steps[..., :2] *= rng.random((ROUNDS, PER_ROW, 2)) < 0.7
    steps[..., 2:] = steps[:, :1, 2:] * (rng.random((ROUNDS, 1, 1)) < 0.5)
    return steps.astype(np.float32)


def moved(at: np.ndarray, steps: np.ndarray, max_log_ratio: float) -> Points:
    """Points around centres f32[K, 4] in log r, A, n/N and log N, by steps f32[P, 4], within the ranges of `scattered`."""
    bounds = [(-max_log_ratio, max_log_ratio), (-MAX_ADVANTAGE, MAX_ADVANTAGE), (0.0, 1.0), np.log(LIFETIMES)]
    log_ratio, advantage, fraction, log_lifetime = (
        np.clip(at[:, None, i] + steps[:, i], *bounds[i]) for i in range(len(bounds))
    )
    lifetime = np.exp(log_lifetime[:, 0])
    return _float32(fraction[:, 0] * lifetime, lifetime, log_ratio, advantage)


def joined(*parts: Points) -> Points:
    """The rows of all of them, in order."""
    return Points(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def thinned(rows: int, points: Points, *values: np.ndarray) -> tuple[Points, *tuple[np.ndarray, ...]]:
    """`rows` of the points at equal distances, and of arrays that lead with the same rows."""
    every = slice(None, None, len(points.step) // rows)
    return Points(*(x[every] for x in points)), *(x[every] for x in values)
