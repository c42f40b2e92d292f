"""The laws of a drift, checked on any drift: for those who write one, and for our own tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from learned_objectives.core import Progress
from learned_objectives.drifts import MAX_LOG_RATIO, Drift
from learned_objectives.mirror import Mirror
from learned_objectives.points import Points, joined, lattice, moved, scattered, search_steps, thinned
from learned_objectives.survey import (
    AT_ONE,
    CHUNK,
    A,
    DriftLawError,
    Survey,
    rearranged,
    survey,
    survey_redraws,
)

__all__ = ["DriftLawError", "verify_drift"]

ROWS, ROWS_PER_DRAW = 3072, 8  # of random points: for the drift itself, and for each redraw of its leaves
BATCHES = 24  # rows that are checked for the law that each sample counts by itself
ULP = 2.0**-23  # of float32 at 1
EXPM1 = " If it is a drift but for rounding, write r - 1 as jnp.expm1(log_ratio)."


def verify_drift(
    drift: Drift | Mirror | Callable[[jax.Array, jax.Array, Progress], jax.Array],
    *,
    num_draws: int = 0,
    key: jax.Array | None = None,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> None:
    """Check that D(log r, A, progress) is a drift.

        D >= 0,    D(r = 1) = 0,    D flat at r = 1,    D and its derivative finite,    D(batch)[i] = D(batch[i])

    The points are a lattice and 390,000 random ones in log r, A, n/N and N: |log r| up to `max_log_ratio`, dense near r = 1 and
    in the range of a clip; |A| up to 100; N from 10 to 1e10 environment steps. From the points of smallest D, a random search
    looks for smaller values. Flatness is asked of the derivative and of finite differences, since autodiff calls |log r| flat at
    0. A negative value within rounding, 2.4e-7 max(1, |A|), is accepted. A check of points is not a proof.

    Args:
      drift: any callable of (log_ratio f32[...], advantage f32[...], progress) that `jax.jit` can trace; a pytree if
        `num_draws` is used. Of a Mirror, its drift is checked.
      num_draws: also check this many redraws of the leaves, leaf + N(0, 1), at fewer points: a law that a family keeps by
        construction holds for all of them, one that a lucky start keeps does not.
      key: for the redraws. Default: `jax.random.key(0)`.
      max_log_ratio: the largest |log r| of a point.

    Raises:
      DriftLawError: with the law that is broken, and where.
      TypeError: for what is no drift and has none.
    """
    drift = _as_drift(drift)
    fixed, random = lattice(float(max_log_ratio)), scattered(float(max_log_ratio), ROWS)
    points = joined(fixed, random)
    surveyed = survey(drift, points)
    _judge(surveyed, points)
    values = surveyed.value[len(fixed.step) :]
    _judge_batches(drift, *thinned(BATCHES, random, values))
    _judge_minimum(drift, random, values, float(max_log_ratio))
    if num_draws:
        points = joined(fixed, thinned(ROWS_PER_DRAW, random)[0])
        key = jax.random.key(0) if key is None else key
        surveys = jax.tree.map(np.asarray, survey_redraws(drift, key, points, num_draws))
        for draw in range(num_draws):
            _judge(Survey(*(x[draw] for x in surveys)), points)


def _as_drift(drift: Any) -> Callable:
    """A pytree that can be called: a drift as it is, that of a Mirror, and a function as a pytree without leaves."""
    drift = drift.drift if isinstance(drift, Mirror) else drift
    if not callable(drift):
        what = f"a {type(drift).__name__}, which has no drift" if not isinstance(drift, str) else repr(drift)
        raise TypeError(
            f"verify_drift checks a drift, a Mirror, or a function of (log_ratio, advantage, progress), and was given {what}"
            + (f": call verify_drift(learned_objectives.load({drift!r}))." if isinstance(drift, str) else ".")
        )
    is_leaf = jax.tree.structure(drift) == jax.tree.structure(0)
    return jax.tree_util.Partial(lambda *args: drift(*args)) if is_leaf else drift


def _judge(surveyed: Survey, points: Points) -> None:
    """Raise for the first law that is broken, at the first point that breaks it."""
    _require(np.isfinite(surveyed.value), "be finite", surveyed.value, points)
    _require_non_negative(surveyed.value, points)
    at_one = [_near_one(points, x) for x in AT_ONE]
    scale = np.abs(at_one[0].advantage)
    value, slope = np.moveaxis(surveyed.value_at_one, 1, 0), np.moveaxis(surveyed.slope_at_one, 1, 0)
    _require(value[0] == 0, "be zero at ratio 1", value[0], at_one[0])
    # On a flat drift the secants and the derivatives vanish with the step; on a kinked one they stay.
    secant = np.abs(value[1:] / AT_ONE[1:, None, None])
    rounding = 1e-6 + 2e-7 * scale
    sides = ((1, 2), (3, 4))  # near and farther, of AT_ONE
    smooth = [np.abs(slope[near]) <= 0.1 * np.abs(slope[farther]) + rounding for near, farther in sides]
    for (near, farther), is_smooth in zip(sides, smooth, strict=True):
        flat = secant[near - 1] <= 0.1 * secant[farther - 1] + 1e-6 * (1.0 + scale)
        _require(flat, "be flat at ratio 1", value[near], at_one[near], EXPM1 if is_smooth.all() else "")
    _require(np.abs(slope[0]) <= rounding, "have derivative zero at ratio 1", slope[0], at_one[0])
    for (near, _), is_smooth in zip(sides, smooth, strict=True):
        _require(is_smooth, "have a derivative that vanishes towards ratio 1", slope[near], at_one[near])
    _require(np.isfinite(surveyed.slope), "have a finite derivative", surveyed.slope, points)


def _near_one(points: Points, log_ratio: float) -> Points:
    """The first A advantages of each row, at this log r."""
    advantage = points.advantage[:, :A]
    return points._replace(log_ratio=np.full_like(advantage, log_ratio), advantage=advantage)


def _judge_batches(drift: Callable, points: Points, value: np.ndarray) -> None:
    """`value` f32[K, P]: D, each row a batch."""
    order = np.random.default_rng(0).permutation(value.shape[1])
    alone, matrix = (np.asarray(x) for x in rearranged(drift, points, order))
    rounding = 1e-4 * np.abs(alone) + 1e-5 * _scale(points)
    for batch, way in ((value, "in a batch"), (matrix, "in a batch in another order, as a matrix")):
        same = np.abs(batch - alone) <= rounding
        _require(same, f"treat each sample by itself: one sample alone gives another value than {way}", batch, points)


def _judge_minimum(drift: Callable, points: Points, value: np.ndarray, max_log_ratio: float) -> None:
    """Search for smaller values from where D is smallest: half of the starts where it is positive, relative to (r - 1)^2.

    A round tries a row of points around each centre. The smallest is the next centre if its D is as small as the last, so a
    search walks over a plateau. It uses no derivative, because D has kinks, and is flat over large regions.
    """
    relative = (value / (np.expm1(points.log_ratio) ** 2 + 1e-12)).ravel()
    positive = np.argsort(np.where(relative > 0, relative, np.inf))[: CHUNK // 2]
    rest = np.random.default_rng(0).choice(np.flatnonzero(relative <= np.median(relative)), CHUNK - len(positive))
    row, column = np.unravel_index(np.concatenate([positive, rest]), value.shape)
    best, lifetime = value[row, column], points.lifetime[row]
    at = [points.log_ratio[row, column], points.advantage[row, column], points.step[row] / lifetime, np.log(lifetime)]
    at = np.stack(at, axis=1)
    for steps in search_steps():
        tried = moved(at, steps, max_log_ratio)
        value = survey(drift, tried).value
        _require(np.isfinite(value), "be finite", value, tried)
        _require_non_negative(value, tried)
        at, best = _best(at, best, tried, value)


def _best(at: np.ndarray, best: np.ndarray, tried: Points, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The next centres f32[K, 4] of a search, and D there, f32[K]."""
    k, j = np.arange(len(best)), value.argmin(1)
    smallest, better = value[k, j], value[k, j] <= best
    where = [tried.log_ratio[k, j], tried.advantage[k, j], tried.step / tried.lifetime, np.log(tried.lifetime)]
    return np.where(better[:, None], np.stack(where, axis=1), at), np.where(better, smallest, best)


def _scale(points: Points) -> np.ndarray:
    """max(1, r) max(1, |A|): float32 rounds D to some 1e-7 of it."""
    return np.maximum(1.0, np.exp(points.log_ratio)) * np.maximum(1.0, np.abs(points.advantage))


def _require_non_negative(value: np.ndarray, points: Points) -> None:
    rounding = 2.0 * ULP * np.maximum(1.0, np.abs(points.advantage))
    _require(value >= -rounding, "be non-negative", value, points)


def _require(holds: np.ndarray, law: str, value: np.ndarray, points: Points, hint: str = "") -> None:
    """`holds` bool[K, n], `value` f32[K, n]: of the first n points of each row."""
    if np.all(holds):
        return
    i, j = np.argwhere(~holds)[0]
    step, lifetime = float(points.step[i]), float(points.lifetime[i])
    raise DriftLawError(
        f"A drift must {law}, and here it gives {value[i, j]:.4g} at log ratio {points.log_ratio[i, j]:.4g}, "
        f"advantage {points.advantage[i, j]:.4g}, n/N = {step / lifetime:.4g}, N = {lifetime:.4g} environment steps.{hint}"
    )
