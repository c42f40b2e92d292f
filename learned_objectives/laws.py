"""The laws of a drift, checked on any drift: for those who write one, and for our own tests."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from learned_objectives.core import Progress
from learned_objectives.drifts import MAX_LOG_RATIO, Drift
from learned_objectives.mirror import Mirror
from learned_objectives.points import BATCH, Points, batches, joined, lattice, moved, scattered, search_steps, thinned
from learned_objectives.survey import AT_ONE, CHUNK, A, DriftLawError, Survey, Surveyor, evaluate, progress_at

__all__ = ["DriftLawError", "verify_drift"]

ROWS, ROWS_PER_DRAW = 3584, 8  # of random points: for the drift itself, and for each redraw of its leaves
BATCHES = 24  # that are checked for the law that each sample counts by itself
STENCILS = 512  # rows whose derivative is compared with differences
# Parts of the way, at most 0.04 of log r, from a point towards ratio 1. Uneven, so that no wave passes for a line.
STENCIL = np.array([0.0, 0.21, 0.5, 0.68, 1.0])[:, None, None]
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

    The points are a lattice and 450,000 random ones in log r, A, n/N and N: |log r| up to `max_log_ratio`, dense near r = 1 and
    in the range of a clip; |A| from 1e-12 to 100; N from 10 to 1e10 environment steps, lives of whole rollouts among them; and
    statistics of the last update over their ranges. From the points of smallest D, a random search looks for smaller values.
    Flatness is asked of the derivative and of finite differences, since autodiff calls |log r| flat at 0. Elsewhere the
    derivative must agree with differences where D is smooth, so that no `stop_gradient` hides it. Batches have 128 and 512
    samples, with log r of one scale or of all.

    A negative value within rounding, 2.4e-7 max(1, |A|), is accepted. |log r|^p is refused for p below 1.17: on points it does
    not differ from a kink. This is a search and no proof: what is broken in a small region of several inputs at once, or in
    batches of other sizes alone, may pass.

    Args:
      drift: any callable of (log_ratio f32[...], advantage f32[...], progress) that `jax.jit` can trace; a pytree if
        `num_draws` is used. Of a Mirror, its drift is checked.
      num_draws: also check this many redraws of the leaves, leaf + N(0, 1), at fewer points: a law that a family keeps by
        construction holds for all of them, one that a lucky start keeps does not.
      key: for the redraws. Default: `jax.random.key(0)`.
      max_log_ratio: the largest |log r| of a point.

    Raises:
      DriftLawError: with the law that is broken, and where.
      TypeError: for what is no drift and has none, and for what `jax.jit` cannot trace.
      ValueError: for a `max_log_ratio` or a `num_draws` that is none.
    """
    max_log_ratio, num_draws = _positive(max_log_ratio), _whole(num_draws)
    drift = _as_drift(drift)
    _require_traceable(drift)
    surveyor = Surveyor(drift)
    judge(surveyor, max_log_ratio=max_log_ratio)
    if num_draws:
        points = joined(lattice(max_log_ratio), thinned(ROWS_PER_DRAW, scattered(max_log_ratio, ROWS))[0])
        surveys = surveyor.redraws(jax.random.key(0) if key is None else key, points, num_draws)
        for draw in range(num_draws):
            _judge(Survey(*(x[draw] for x in surveys)), points)


def judge(surveyor: Surveyor, *, max_log_ratio: float = MAX_LOG_RATIO) -> None:
    """`verify_drift` of the drift of a surveyor. With `Surveyor.of`, many drifts of one structure need one compilation."""
    fixed, random = lattice(max_log_ratio), scattered(max_log_ratio, ROWS)
    points = joined(fixed, random)
    surveyed = surveyor.survey(points)
    _judge(surveyed, points)
    _judge_batches(surveyor, batches(max_log_ratio, BATCHES))
    _judge_derivative(surveyor, thinned(STENCILS, random)[0])
    _judge_minimum(surveyor, random, surveyed.value[len(fixed.step) :], max_log_ratio)


def _positive(max_log_ratio: float) -> float:
    if not (math.isfinite(max_log_ratio) and max_log_ratio > 0):
        raise ValueError(
            f"max_log_ratio must be positive and finite, and is {max_log_ratio}: give the largest |log r| to check, "
            f"{MAX_LOG_RATIO:g} by default."
        )
    return float(max_log_ratio)


def _whole(num_draws: int) -> int:
    if not hasattr(num_draws, "__index__") or operator.index(num_draws) < 0:
        raise ValueError(
            f"num_draws must be a whole number, and is {num_draws!r}: give 1 or more, or 0 for no redraws, the default."
        )
    return operator.index(num_draws)


def _as_drift(drift: Any) -> Callable:
    """A pytree that can be called: a drift as it is, that of a Mirror, and a function as a pytree without leaves."""
    drift = drift.drift if isinstance(drift, Mirror) else drift
    _require_drift(drift)
    is_leaf = jax.tree.structure(drift) == jax.tree.structure(0)
    return jax.tree_util.Partial(lambda *args: drift(*args)) if is_leaf else drift


def _require_drift(drift: Any) -> None:
    """Raise TypeError for what cannot be called with three arguments, and for a class, whose call is another."""
    what = None
    if isinstance(drift, type):
        what = f"the class {drift.__name__}: give an instance of it."
    elif isinstance(drift, str):
        what = f"{drift!r}: call verify_drift(learned_objectives.load({drift!r}))."
    elif not callable(drift):
        what = f"a {type(drift).__name__}, which has no drift."
    elif not _takes_three(drift):
        what = f"one of {inspect.signature(drift)}: let it take these three in this order, also those it does not use."
    if what:
        raise TypeError(
            "verify_drift checks a drift, a Mirror, or a function of (log_ratio, advantage, progress), "
            f"and was given {what}"
        )


def _takes_three(drift: Callable) -> bool:
    try:
        signature = inspect.signature(drift)
    except ValueError:  # some compiled functions have none
        return True
    try:
        signature.bind(*range(3))
    except TypeError:
        return False
    return True


def _require_traceable(drift: Callable) -> None:
    x = jax.ShapeDtypeStruct((BATCH,), jnp.float32)
    n = jax.ShapeDtypeStruct((), jnp.float32)
    try:
        jax.eval_shape(lambda x, a, n, N: evaluate(drift, x, a, progress_at(n, N)), x, x, n, n)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        raise TypeError(
            "verify_drift checks a drift that jax.jit can trace, and this one asks for the values of its inputs, as NumPy or a "
            "Python if on an array do: use jax.numpy for numpy and jnp.where for if."
        ) from error


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


def _judge_derivative(surveyor: Surveyor, points: Points) -> None:
    """Compare the derivative with differences, where neither changes much over the stencil of a point: no kink is there.

    Float32 allows no small steps, so that both are means over the stencil. A drift that is steep, as KL late in a life, rounds
    its values as its factor D / (log r)^2 does.
    """
    x = points.log_ratio.astype(float)
    way = 0.04 * np.clip(x, -1.0, 1.0)
    stencils = [points._replace(log_ratio=y.astype(np.float32)) for y in x - way * STENCIL]
    surveyed = surveyor.survey(joined(*stencils))
    x, value, slope = (
        np.asarray(y, float).reshape(len(STENCIL), *way.shape)
        for y in (joined(*stencils).log_ratio, surveyed.value, surveyed.slope)
    )
    factor = np.abs(value).max(0) / np.clip(x[0] ** 2, 1e-30, 1.0)
    rounding = 1e-5 * np.maximum(_scale(points), factor) / np.maximum(np.abs(way), 1e-12)
    with np.errstate(divide="ignore", invalid="ignore"):  # at ratio 1 itself there is no stencil
        difference = np.diff(value, axis=0) / np.diff(x, axis=0)
        mean = (value[-1] - value[0]) / (x[-1] - x[0])
    smooth = _even(slope, rounding) & _even(difference, rounding)
    same = np.abs(slope.mean(0) - mean) <= 0.2 * np.maximum(np.abs(mean), np.abs(slope).max(0)) + rounding
    law = "have the derivative that its values have: autodiff gives another than their differences do"
    _require(same | ~smooth, law, slope[0], points)


def _even(x: np.ndarray, rounding: np.ndarray) -> np.ndarray:
    """Whether x f64[n, K, P] changes little along n: bool[K, P]."""
    return np.ptp(x, axis=0) <= 0.15 * np.abs(x).max(0) + rounding


def _judge_batches(surveyor: Surveyor, points: Points) -> None:
    """Each row is a batch. Rounding is that of D's inputs, which are as small as the largest log r of a row, and of D."""
    values = surveyor.rearranged(points, np.random.default_rng(0).permutation(BATCH))
    alone = values.pop("alone")
    reach = np.minimum(np.abs(points.log_ratio).max(1, keepdims=True), 1.0)
    rounding = 1e-4 * np.abs(alone) + (1e-6 + 1e-5 * reach) * _scale(points)
    for way, batch in values.items():
        same = np.abs(batch - alone) <= rounding
        _require(same, f"treat each sample by itself: one sample alone gives another value than {way}", batch, points)


def _judge_minimum(surveyor: Surveyor, points: Points, value: np.ndarray, max_log_ratio: float) -> None:
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
        value = surveyor.survey(tried).value
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
