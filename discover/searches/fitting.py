"""What a formula is fitted to: samples of a drift and of its slope, the error of a formula, and constants by least squares."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import learned_objectives as lo
from discover.searches.numeric import Dual, evaluate
from learned_objectives.expressions import Code

REACH = 1.0  # the largest |log r|
WIDTH, WIDTH_ELSEWHERE = 33, 48  # how many log r
ADVANTAGES = (-2.5, -1.5, -0.8, -0.3, 0.3, 0.8, 1.5, 2.5)
ADVANTAGES_ELSEWHERE = (-3.0, -2.0, -1.2, -0.6, -0.1, 0.1, 0.6, 1.2, 2.0, 3.0)
FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
LIFETIMES = (1e5, 3e5, 1e6)  # environment steps
STEPS = 20  # most of a fit
LARGEST = 1e4  # of |a constant| that a fit may reach
ROUNDING = 2e-7  # an error that float32 does not show
SAME = 1e-7  # two values of a drift that differ by less do not differ


class Samples(NamedTuple):
    """A drift at the products of log r, A, and of n/N and N where it depends on them. f64[n] each."""

    variables: Mapping[str, Dual]  # as a program reads them
    value: np.ndarray  # D
    slope: np.ndarray  # dD / d log r
    value_scale: float  # root mean square of `value`, or 1 where that is 0
    slope_scale: float

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.variables)


def samples_of(drift: lo.Drift, *, elsewhere: bool = False) -> Samples:
    """The samples of a drift; `elsewhere`: at other log r and A than those that formulas are fitted to.

    ValueError, in a sentence, for a drift that reads statistics, is zero, or is not finite.
    """
    if drift.needs_statistics:
        raise ValueError(
            f"a formula reads log r, A and the time, and this {type(drift).__name__} reads statistics of the agent: give a "
            "drift without them."
        )
    fractions, lifetimes = _moments(drift)
    u = np.linspace(-1.0, 1.0, WIDTH_ELSEWHERE if elsewhere else WIDTH)
    x = REACH * np.sign(u) * u**2  # dense near ratio 1
    rows = list(itertools.product(lifetimes, fractions, ADVANTAGES_ELSEWHERE if elsewhere else ADVANTAGES, x))
    lifetime, fraction, advantage, log_ratio = np.array(rows, np.float32).T
    value, slope = _at(drift, log_ratio, advantage, fraction, lifetime)
    if not (np.isfinite(value).all() and np.isfinite(slope).all()):
        raise ValueError("this drift is not finite at the samples: a formula cannot be fitted to it.")
    if not value.any():
        raise ValueError("this drift is zero at all samples, so that there is nothing to distil.")
    variables = _variables(log_ratio, advantage, fraction, lifetime)
    kept = (
        {"log_r", "r1", "A"} | ({"t"} if len(fractions) > 1 else set()) | ({"log_N"} if len(lifetimes) > 1 else set())
    )
    return _scaled({name: v for name, v in variables.items() if name in kept}, value, slope)


def _scaled(variables: Mapping[str, Dual], value: np.ndarray, slope: np.ndarray) -> Samples:
    return Samples(variables, value, slope, *(float(np.sqrt(np.mean(y**2))) or 1.0 for y in (value, slope)))


def halves(samples: Samples) -> tuple[Samples, Samples]:
    """The samples with A < 0, and those with A > 0. Each has scales of its own."""
    negative = samples.variables["A"].value < 0
    return tuple(  # type: ignore[return-value]
        _scaled(
            {name: Dual(v.value[some], v.slope[some]) for name, v in samples.variables.items()},
            samples.value[some],
            samples.slope[some],
        )
        for some in (negative, ~negative)
    )


def _moments(drift: lo.Drift) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The n/N and N of the samples: several where the drift depends on them."""
    if not drift.needs_progress:
        return (0.5,), (1e6,)
    x, a = (np.ravel(y).astype(np.float32) for y in np.meshgrid(np.linspace(-REACH, REACH, 11), ADVANTAGES))
    at = lambda fraction, lifetime: _at(drift, x, a, np.full_like(x, fraction), np.full_like(x, lifetime))[0]
    by_fraction = [at(fraction, 1e6) for fraction in FRACTIONS]
    by_lifetime = [at(0.5, lifetime) for lifetime in LIFETIMES]
    differ = lambda found: any(np.abs(each - found[0]).max() > SAME for each in found[1:])
    return FRACTIONS if differ(by_fraction) else (0.5,), LIFETIMES if differ(by_lifetime) else (1e6,)


def _at(drift, log_ratio, advantage, fraction, lifetime) -> tuple[np.ndarray, np.ndarray]:
    """D and dD / d log r at arrays f32[n]."""

    def one(x, a, t, life):
        return drift(x[None], a[None], lo.Progress(t * life, life))[0]

    both = jax.jit(jax.vmap(jax.value_and_grad(one)))
    found = both(*map(jnp.asarray, (log_ratio, advantage, fraction, lifetime)))
    return tuple(np.asarray(y, np.float64) for y in found)  # type: ignore[return-value]


def _variables(log_ratio, advantage, fraction, lifetime) -> dict[str, Dual]:
    log_ratio, zero = log_ratio.astype(float), np.zeros(len(log_ratio))
    return {
        "log_r": Dual(log_ratio, zero + 1.0),
        "r1": Dual(np.expm1(log_ratio), np.exp(log_ratio)),
        "A": Dual(advantage.astype(float), zero),
        "t": Dual(fraction.astype(float), zero),
        "log_N": Dual(np.log10(lifetime.astype(float)) - 5.5, zero),
    }


def residuals(code: Code, constants: np.ndarray, samples: Samples) -> np.ndarray:
    """f64[..., 2 n] of sets of constants f64[..., K]: differences of values, then of slopes, over their scales and sqrt(2 n)."""
    found = evaluate(code, constants, samples.variables)
    n = len(samples.value)
    shape = (*np.shape(constants)[:-1], n)
    with np.errstate(all="ignore"):
        parts = [
            np.broadcast_to((y - target) / (scale * math.sqrt(2 * n)), shape)
            for y, target, scale in zip(
                found, (samples.value, samples.slope), (samples.value_scale, samples.slope_scale), strict=True
            )
        ]
    return np.concatenate(parts, axis=-1)


def error_of(code: Code, constants: np.ndarray, samples: Samples) -> float:
    """The root mean square error of values and slopes, each over the root mean square of the drift's own; inf where it is none.

        error^2 = mean[(D' - D)^2] / (2 mean[D^2]) + mean[(dD' - dD)^2] / (2 mean[dD^2])

    D' is the formula, and d the derivative in log r. The formula 0 has the error 1.
    """
    return _norm(residuals(code, np.asarray(constants, float), samples))


def _norm(r: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        found = float(np.sqrt(np.sum(r * r)))
    return found if math.isfinite(found) else math.inf


def tuned(code: Code, constants: np.ndarray, samples: Samples) -> tuple[np.ndarray, float]:
    """(constants, error) after at most STEPS steps of Levenberg and Marquardt from these constants. Never worse than them.

    The Jacobian is of differences: all columns are one evaluation of K + 1 sets of constants.
    Reference: Moré 1978, "The Levenberg-Marquardt algorithm: implementation and theory".
    """
    c = np.asarray(constants, float)
    best = error_of(code, c, samples)
    if not len(c) or not math.isfinite(best):
        return c, best
    damping = 1e-3
    for _ in range(STEPS):
        r, jacobian = _jacobian(code, c, samples)
        if not np.isfinite(jacobian).all():
            break
        gradient, curvature = jacobian @ r, jacobian @ jacobian.T
        before = best
        for _ in range(6):
            scale = np.diag(curvature) + 1e-12
            step = np.linalg.solve(curvature + damping * np.diag(scale), gradient)
            moved = np.clip(c - step, -LARGEST, LARGEST)
            if (found := error_of(code, moved, samples)) < best:
                c, best, damping = moved, found, max(damping / 8.0, 1e-12)
                break
            damping *= 5.0
        if best > before * (1.0 - 1e-5):
            break
    return c, best


def _jacobian(code: Code, c: np.ndarray, samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """(residuals f64[2 n], their derivatives in the constants f64[K, 2 n])."""
    h = 1e-7 * np.maximum(np.abs(c), 1e-2)
    found = residuals(code, np.concatenate([c[None], c + np.diag(h)]), samples)
    return found[0], (found[1:] - found[0]) / h[:, None]


def rounded(code: Code, constants: np.ndarray, samples: Samples, *, worse: float) -> np.ndarray:
    """Constants of as few digits as leave the error below (1 + worse) times what it is, one after the other."""
    c = np.asarray(constants, float).copy()
    most = error_of(code, c, samples) * (1.0 + worse) + ROUNDING
    for i in range(len(c)):
        for digits in range(1, 8):
            near = c.copy()
            near[i] = float(f"{c[i]:.{digits}g}")
            if error_of(code, near, samples) <= most:
                c = near
                break
    return c
