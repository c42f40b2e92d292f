"""What returns over seeds and environments may be said to show: a statistic, and the interval it has under resampling.

Scores are f64[E, S]: `E` environments (or worlds, or any strata), `S` seeds. Intervals are of the stratified percentile
bootstrap: seeds are drawn again within each environment, environments are not. A seed without a return, NaN, counts as the
worst there is. Reference for all of it: Agarwal et al. 2021, arXiv:2108.13264.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

SAMPLES = 5000  # of the bootstrap


class Interval(NamedTuple):
    """A statistic and its bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return format(self)

    def __format__(self, spec: str) -> str:
        value, low, high = (format(x, spec or ".1f") for x in self)
        return f"{value} [{low}, {high}]"


def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean over the last two axes: the mean of the middle half, after leaving out floor(n / 4) at each end."""
    scores = _sorted(scores)
    cut = scores.shape[-1] // 4
    return scores[..., cut : scores.shape[-1] - cut].mean(-1)


def median(scores: np.ndarray) -> np.ndarray:
    """Median over environments of the mean over seeds."""
    return np.median(_worst(scores).mean(-1), axis=-1)


def mean(scores: np.ndarray) -> np.ndarray:
    """Mean over environments and seeds."""
    return _worst(scores).mean((-2, -1))


def optimality_gap(scores: np.ndarray, target: float = 1.0) -> np.ndarray:
    """By how much scores fall short of `target` on average, those above it counting as it: lower is better."""
    return target - np.minimum(_worst(scores), target).mean((-2, -1))


def probability_of_improvement(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """P(X > Y) + P(X = Y) / 2, X one of our seeds and Y one of theirs in the same environment, averaged over environments.

    Of one environment it is the Mann-Whitney statistic over the number of pairs.
    """
    ours, theirs = _worst(ours)[..., :, None], _worst(theirs)[..., None, :]
    return ((ours > theirs) + 0.5 * (ours == theirs)).mean((-2, -1)).mean(-1)


def paired_improvement(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Mean of ours - theirs where seed s of both met the same task with the same keys: resample both by the same draw. Where
    neither has a return, neither is ahead."""
    ours, theirs = _worst(ours), _worst(theirs)
    with np.errstate(invalid="ignore"):
        gain = np.where(ours == theirs, 0.0, ours - theirs)
    return gain.mean((-2, -1))


def interval(
    statistic: Callable[..., np.ndarray],
    *scores: np.ndarray,
    paired: bool = False,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A statistic of one or more sets of scores f[E, S] (or f[S], of one environment) and its interval.

    Args:
      statistic: takes each set as f64[..., E, S] and returns f64[...].
      paired: whether seed s is the same task in all sets, so that what is drawn for one is drawn for all.
      level: of the interval.

    Raises ValueError for fewer than two seeds, of which nothing can be said, and for sets of different environments.
    """
    sets = [np.atleast_2d(np.asarray(x, np.float64)) for x in scores]
    fewest = min(x.shape[-1] for x in sets)
    if fewest < 2:
        raise ValueError(f"an interval needs at least 2 seeds, and there is {fewest}: give --num-seeds 2 or more.")
    if len({x.shape[0] for x in sets}) > 1:
        raise ValueError(f"scores must be of the same environments, and have shapes {[x.shape for x in sets]}.")
    if paired and len({x.shape for x in sets}) > 1:
        raise ValueError(f"paired scores must have one shape, and have {[x.shape for x in sets]}.")
    generator = np.random.default_rng(seed)
    block = max(1, 2_000_000 // (sets[0].shape[0] * max(x.shape[-1] for x in sets) ** 2))  # so that memory stays small
    samples = []
    with np.errstate(invalid="ignore"):  # a mean of an infinite worst is infinite, and so is its interval
        for count in (min(block, SAMPLES - done) for done in range(0, SAMPLES, block)):
            drawn, index = [], None
            for x in sets:
                if index is None or not paired:
                    index = generator.integers(0, x.shape[-1], (count, *x.shape))
                drawn.append(np.take_along_axis(x[None], index, axis=-1))
            samples.append(statistic(*drawn))
        value = statistic(*sets)
    low, high = np.quantile(np.concatenate(samples), [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return Interval(float(value), float(low), float(high))


def iqm_interval(scores: np.ndarray) -> Interval:
    """IQM with its 95% interval, of f[E, S] or f[S]; of a single seed, that seed."""
    scores = np.atleast_2d(np.asarray(scores, np.float64))
    if scores.shape[-1] == 1:
        return Interval(*[float(iqm(scores))] * 3)
    return interval(iqm, scores)


def _worst(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    return np.where(np.isnan(scores), -np.inf, scores)


def _sorted(scores: np.ndarray) -> np.ndarray:
    """Over the last two axes together."""
    scores = _worst(scores)
    return np.sort(scores.reshape((*scores.shape[:-2], -1)), axis=-1)
