"""The laws of a drift, checked on any drift: for whoever writes one, and for our own tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from learned_objectives.core import Progress

ADVANTAGES = (-8.0, -3.0, -1.0, -0.3, -0.01, 0.0, 0.01, 0.3, 1.0, 3.0, 8.0)
FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
# Of log r, far and near on either side of 0. Near lies inside the closed relu of any LPO whose
# slopes stay under slack / near = 1e4.
STEPS = (1e-2, 1e-8, -1e-2, -1e-8)
LIFETIME = 1_000_000.0


class DriftLawError(ValueError):
    """A drift breaks a law of mirror learning; the message names the law and the place."""


def verify_drift(
    drift: Callable[[jax.Array, jax.Array, Progress], jax.Array],
    *,
    num_draws: int = 0,
    key: jax.Array | None = None,
    max_log_ratio: float = 2.0,
) -> None:
    """Check that D(log r, A, progress) is a drift, on grids of log r, A and n/N.

        D >= 0,        D(r = 1) = 0,        D flat at r = 1,        D finite and of the shape of log r

    Flatness is asked of the derivative and of finite differences, since autodiff calls |log r| flat at 0. Only what
    holds on the grid is shown.

    Args:
      drift: any callable of (log_ratio f32[...], advantage f32[...], progress) that `jax.jit` can trace; a pytree if
        `num_draws` is used.
      num_draws: also check this many redraws of the leaves, leaf + N(0, 1): a law that a family keeps by construction
        holds for all of them, one that a lucky start keeps does not.
      key: for the redraws. Default: `jax.random.key(0)`.
      max_log_ratio: the grid of log r spans [-max_log_ratio, max_log_ratio].

    Raises:
      DriftLawError: with the law that is broken, and where.
    """
    log_ratios = np.linspace(-max_log_ratio, max_log_ratio, 81, dtype=np.float32)
    survey = jax.jit(lambda fraction: _survey(drift, fraction, log_ratios))
    for fraction in FRACTIONS:
        _judge(survey(fraction), log_ratios, fraction)
    if num_draws:
        key = jax.random.key(0) if key is None else key
        surveys = _survey_redraws(drift, key, num_draws, log_ratios)
        for draw, (j, fraction) in itertools.product(range(num_draws), enumerate(FRACTIONS)):
            _judge(_Survey(*(x[draw, j] for x in surveys)), log_ratios, fraction)


class _Survey(NamedTuple):
    """What the laws look at, for one drift at one n/N."""

    value: jax.Array  # f32[log r, A]: D on the grid
    at_one: jax.Array  # f32[1, A]: D at log r = 0
    beside: jax.Array  # f32[step, A]: D at log r = each of STEPS
    slope: jax.Array  # f32[A]: dD / d log r at log r = 0


def _survey(drift, fraction: jax.Array, log_ratios: np.ndarray) -> _Survey:
    progress = Progress(jnp.float32(fraction * LIFETIME), jnp.float32(LIFETIME))
    advantage = jnp.asarray(ADVANTAGES, jnp.float32)
    return _Survey(
        value=_on_grid(drift, log_ratios, progress),
        at_one=_on_grid(drift, np.zeros(1, np.float32), progress),
        beside=_on_grid(drift, np.asarray(STEPS, np.float32), progress),
        slope=jax.grad(lambda x: drift(x, advantage, progress).sum())(jnp.zeros_like(advantage)),
    )


def _survey_redraws(drift, key: jax.Array, num_draws: int, log_ratios: np.ndarray) -> _Survey:
    """Leaves lead with [draw, n/N]. Compiled once: draw by draw, this would take minutes."""

    def survey(draw):
        moved = _redraw(drift, jax.random.fold_in(key, draw))
        fractions = jnp.asarray(FRACTIONS, jnp.float32)
        return jax.lax.map(lambda fraction: _survey(moved, fraction, log_ratios), fractions)

    surveys = jax.jit(lambda draws: jax.lax.map(survey, draws))(jnp.arange(num_draws))
    return jax.tree.map(np.asarray, surveys)


def _redraw(drift, key):
    leaves, treedef = jax.tree.flatten(drift)
    keys = jax.random.split(key, max(len(leaves), 1))
    moved = [leaf + jax.random.normal(k, jnp.shape(leaf)) for leaf, k in zip(leaves, keys, strict=False)]
    return jax.tree.unflatten(treedef, moved)


def _judge(survey: _Survey, log_ratios: np.ndarray, fraction: float) -> None:
    value, at_one, beside, slope = (np.asarray(x) for x in survey)
    _require(np.isfinite(value), "be finite", value, log_ratios, fraction)
    _require(value >= 0, "be non-negative", value, log_ratios, fraction)
    _require(at_one == 0, "be zero at ratio 1", at_one, np.zeros(1), fraction)
    for far, near in ((0, 1), (2, 3)):
        secant = beside / np.abs(STEPS)[:, None]
        # On a flat drift the secant's slope vanishes with the step; on a kinked one it stays.
        smooth = secant[near] <= 0.01 * secant[far] + 1e-5
        _require(smooth[None], "be flat at ratio 1", beside[near, None], STEPS[near:], fraction)
    flat = np.abs(slope) <= 1e-5
    _require(flat[None], "have derivative zero at ratio 1", slope[None], np.zeros(1), fraction)


def _on_grid(drift, log_ratios: np.ndarray, progress: Progress) -> jax.Array:
    """D on the grid: f32[log r, A]."""
    log_ratio, advantage = jnp.meshgrid(jnp.asarray(log_ratios), jnp.asarray(ADVANTAGES, jnp.float32), indexing="ij")
    value = drift(log_ratio, advantage, progress)
    if jnp.shape(value) != log_ratio.shape:
        raise DriftLawError(
            f"A drift must return the shape of log r: it was given {log_ratio.shape} and returned {jnp.shape(value)}."
        )
    return value


def _require(holds: np.ndarray, law: str, value: np.ndarray, log_ratios, fraction: float) -> None:
    if np.all(holds):
        return
    i, j = np.argwhere(~holds)[0]
    raise DriftLawError(
        f"A drift must {law}, and here it gives {value[i, j]:.4g} at log ratio {log_ratios[i]:.4g}, "
        f"advantage {ADVANTAGES[j]:g}, n/N = {fraction:g}."
    )
