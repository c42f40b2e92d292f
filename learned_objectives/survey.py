"""What a drift gives at many points: the compiled half of `verify_drift`, which judges none of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from learned_objectives.core import Progress
from learned_objectives.points import ADVANTAGES, Points

# Of log r: near and farther on either side of 0. NEAR lies within the closed relu of any LPO whose slopes are under
# slack / NEAR = 1e5.
NEAR, FARTHER = 1e-9, 1e-6
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


def _survey(drift: Callable, points: Points) -> Survey:
    def row(point):
        step, lifetime, log_ratio, advantage = point
        at_one = jnp.broadcast_to(AT_ONE[:, None], (len(AT_ONE), A)).ravel()
        x = jnp.concatenate([log_ratio, at_one])
        a = jnp.concatenate([advantage, jnp.tile(advantage[:A], len(AT_ONE))])
        value, pullback = jax.vjp(lambda x: evaluate(drift, x, a, Progress(step, lifetime)), x)
        (slope,) = pullback(jnp.ones_like(value))
        halves = [jnp.split(y, [len(log_ratio)]) for y in (value, slope)]
        (value, value_at_one), (slope, slope_at_one) = ((y, z.reshape(-1, A)) for y, z in halves)
        return Survey(value, slope, value_at_one, slope_at_one)

    return jax.lax.map(row, points)


_survey_chunk = jax.jit(_survey)


def survey(drift: Callable, points: Points) -> Survey:
    """In chunks of rows, so that one compiled program serves any number of them. Arrays of NumPy."""
    rows = len(points.step)
    padded = Points(*(np.concatenate([x, np.repeat(x[-1:], -rows % CHUNK, axis=0)]) for x in points))
    chunks = [
        _survey_chunk(drift, Points(*(x[i : i + CHUNK] for x in padded))) for i in range(0, len(padded.step), CHUNK)
    ]
    return Survey(*(np.concatenate(x)[:rows] for x in zip(*chunks, strict=True)))


@partial(jax.jit, static_argnames="num_draws")
def survey_redraws(drift: Callable, key: jax.Array, points: Points, num_draws: int) -> Survey:
    """Leaves lead with [draw]. Compiled once: draw by draw, this would take minutes."""

    def of_draw(draw):
        return _survey(_redraw(drift, jax.random.fold_in(key, draw)), points)

    return jax.lax.map(of_draw, jnp.arange(num_draws))


def _redraw(drift, key):
    leaves, treedef = jax.tree.flatten(drift)
    keys = jax.random.split(key, max(len(leaves), 1))
    moved = [leaf + jax.random.normal(k, jnp.shape(leaf)) for leaf, k in zip(leaves, keys, strict=False)]
    return jax.tree.unflatten(treedef, moved)


@jax.jit
def rearranged(drift: Callable, points: Points, order: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """D of each sample by itself, and in its row in the order i32[P], as a matrix: f32[K, P] each."""

    def row(point):
        step, lifetime, log_ratio, advantage = point
        of = partial(evaluate, drift, progress=Progress(step, lifetime))
        alone = jax.vmap(lambda x, a: of(x[None], a[None])[0])(log_ratio, advantage)
        matrix = of(log_ratio[order].reshape(-1, 16), advantage[order].reshape(-1, 16))
        return alone, matrix.ravel()[jnp.argsort(order)]

    return jax.lax.map(row, points)


def evaluate(drift: Callable, log_ratio: jax.Array, advantage: jax.Array, progress: Progress) -> jax.Array:
    """D, or DriftLawError if it has not the shape of log r."""
    value = drift(log_ratio, advantage, progress)
    if jnp.shape(value) != log_ratio.shape:
        raise DriftLawError(
            f"A drift must return the shape of log r: it was given {log_ratio.shape} and returned {jnp.shape(value)}."
        )
    return value
