"""What a drift gives at many points: the compiled half of `verify_drift`, which judges none of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from learned_objectives.core import Progress, Statistics
from learned_objectives.points import ADVANTAGES, Points

# Of log r: near and farther on either side of 0. NEAR lies within the closed relu of any LPO whose slopes are under
# slack / NEAR = 1e8, and so near that the slope of |log r|^p has fallen to a tenth between the two for any p > 1.17.
NEAR, FARTHER = 1e-12, 1e-6
AT_ONE = np.array([0.0, NEAR, FARTHER, -NEAR, -FARTHER], np.float32)
A = len(ADVANTAGES)
CHUNK = 64  # rows


class DriftLawError(ValueError):
    """A drift breaks a law of mirror learning; the message names the law and the place."""


class Survey(NamedTuple):
    """One drift at `K` rows of points."""

    value: jax.Array  # f32[K, P]: D
    slope: jax.Array  # f32[K, P]: dD / d log r
    value_at_one: jax.Array  # f32[K, len(AT_ONE), A]: D at log r = each of AT_ONE, for the first A advantages of a row
    slope_at_one: jax.Array  # f32[K, len(AT_ONE), A]: dD / d log r there


def progress_at(step: jax.Array, lifetime: jax.Array) -> Progress:
    """The progress at a point, with statistics that are scattered over their ranges as n and N vary."""
    phase = 977.0 * step / lifetime + jnp.log(lifetime)
    kl, entropy, explained, clipped = (jnp.mod(factor * phase, 1.0) for factor in (1.0, 3.7, 7.3, 13.1))
    return Progress(step, lifetime, Statistics(10.0 ** (-6.0 * kl), entropy, 2.0 * explained - 1.0, clipped))


def _survey(drift: Callable, points: Points) -> Survey:
    def row(point):
        step, lifetime, log_ratio, advantage = point
        at_one = jnp.broadcast_to(AT_ONE[:, None], (len(AT_ONE), A)).ravel()
        x = jnp.concatenate([log_ratio, at_one])
        a = jnp.concatenate([advantage, jnp.tile(advantage[:A], len(AT_ONE))])
        value, pullback = jax.vjp(lambda x: evaluate(drift, x, a, progress_at(step, lifetime)), x)
        (slope,) = pullback(jnp.ones_like(value))
        halves = [jnp.split(y, [len(log_ratio)]) for y in (value, slope)]
        (value, value_at_one), (slope, slope_at_one) = ((y, z.reshape(-1, A)) for y, z in halves)
        return Survey(value, slope, value_at_one, slope_at_one)

    return jax.lax.map(row, points)


class Surveyor:
    """One drift, traced again: `jax.jit` would keep what it traced of a class before its code or a global of it changed.

    `jax.jit` knows a function by its identity, and each partial has its own.
    """

    def __init__(self, drift: Callable):
        """`drift`: a pytree that can be called."""
        self._compiled = (
            jax.jit(partial(_survey)),
            jax.jit(partial(_survey_redraws), static_argnums=3),
            jax.jit(partial(_rearranged)),
        )
        self._bind(drift)

    def of(self, drift: Callable) -> Surveyor:
        """One of another drift of the same structure, for which nothing is compiled again."""
        other = copy.copy(self)
        other._bind(drift)
        return other

    def _bind(self, drift: Callable) -> None:
        self._survey, self._redraws, self._rearranged = (partial(fn, drift) for fn in self._compiled)

    def survey(self, points: Points) -> Survey:
        """In chunks of rows, so that one compiled program serves any number of them. Arrays of NumPy."""
        rows = len(points.step)
        padded = Points(*(np.concatenate([x, np.repeat(x[-1:], -rows % CHUNK, axis=0)]) for x in points))
        starts = range(0, len(padded.step), CHUNK)
        chunks = [self._survey(Points(*(x[i : i + CHUNK] for x in padded))) for i in starts]
        return Survey(*(np.concatenate(x)[:rows] for x in zip(*chunks, strict=True)))

    def redraws(self, key: jax.Array, points: Points, num_draws: int) -> Survey:
        """Leaves lead with [draw]. Compiled once: draw by draw, this would take minutes. Arrays of NumPy."""
        return jax.tree.map(np.asarray, self._redraws(key, points, num_draws))

    def rearranged(self, points: Points, order: np.ndarray) -> dict[str, np.ndarray]:
        """D f32[K, P] of each sample alone, and in batches; `order` i32[P] is that of the matrix and the cube."""
        return {way: np.asarray(value) for way, value in self._rearranged(points, order).items()}


def _survey_redraws(drift: Callable, key: jax.Array, points: Points, num_draws: int) -> Survey:
    def of_draw(draw):
        return _survey(_redraw(drift, jax.random.fold_in(key, draw)), points)

    return jax.lax.map(of_draw, jnp.arange(num_draws))


def _redraw(drift, key):
    leaves, treedef = jax.tree.flatten(drift)
    keys = jax.random.split(key, max(len(leaves), 1))
    moved = [leaf + jax.random.normal(k, jnp.shape(leaf)) for leaf, k in zip(leaves, keys, strict=False)]
    return jax.tree.unflatten(treedef, moved)


def _rearranged(drift: Callable, points: Points, order: np.ndarray) -> dict[str, jax.Array]:
    def row(point):
        step, lifetime, *pair = point
        of = partial(evaluate, drift, progress=progress_at(step, lifetime))

        def rows(width):
            return jax.vmap(of)(*(x.reshape(-1, width) for x in pair)).ravel()

        def reordered(*shape):
            return of(*(x[order].reshape(shape) for x in pair)).ravel()[jnp.argsort(order)]

        return {
            "alone": rows(1),
            "in a batch of 128": rows(128),
            "in a batch of 512": of(*pair),
            "in a cube in another order": reordered(-1, 8, 4),
            "in a matrix in another order": reordered(-1, 16),
        }

    return jax.lax.map(row, points)


def evaluate(drift: Callable, log_ratio: jax.Array, advantage: jax.Array, progress: Progress) -> jax.Array:
    """D, or DriftLawError if it has not the shape of log r or is not of floating-point numbers."""
    value = drift(log_ratio, advantage, progress)
    if value is None:
        raise DriftLawError(
            "A drift must return the shape of log r, and returned None: end it with a return statement."
        )
    if jnp.shape(value) != log_ratio.shape:
        raise DriftLawError(
            f"A drift must return the shape of log r: it was given {log_ratio.shape} and returned {jnp.shape(value)}."
        )
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise DriftLawError(
            f"A drift must return floating-point numbers, and returned {jnp.result_type(value)}: "
            "compute it from log_ratio, or convert it with .astype(log_ratio.dtype)."
        )
    return value
