"""What returns over seeds and environments may be said to show: a statistic, and the interval it has under resampling.

Scores are f64[E, S]: `E` environments (or worlds, or any strata), `S` seeds. Intervals of 8 seeds or more are of the stratified
percentile bootstrap: seeds are drawn again within each environment, environments are not. A seed without a return, NaN, counts as
the worst there is. Reference: Agarwal et al. 2021, arXiv:2108.13264.

The percentile bootstrap of 2 to 7 seeds covers 45 to 92 % where it says 95 (`python -m benchmarks.coverage`). For so few,
`interval` gives value +- t se instead, t of Student's distribution, which covers 89 to 98 %; and for the probability of
improvement, also in a single environment, the score interval of Newcombe 2006.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

SAMPLES = 5000  # of the bootstrap
FEW = 8  # seeds, below which a percentile bootstrap covers too little


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
    """Mean of ours - theirs, where seed s of both has the same task and keys: resample both by the same draw. If neither has a
    return, their difference is 0."""
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

    The interval is of the percentile bootstrap; with fewer than 8 seeds in a set it is `t_interval`, whose strata are the sets'
    environments; of `probability_of_improvement`, unpaired, with fewer than 8 seeds or of one environment, `score_interval`.

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
    draw = _Draw(statistic, sets, paired, np.random.default_rng(seed))
    with np.errstate(invalid="ignore"):  # a mean of an infinite worst is infinite, and so is its interval
        value = float(statistic(*sets))
        if statistic is probability_of_improvement and not paired and (fewest < FEW or len(sets[0]) == 1):
            return score_interval(value, *(x.shape[-1] for x in sets), environments=len(sets[0]), level=level)
        if fewest < FEW:
            strata = [(i, e) for i in range(1 if paired else len(sets)) for e in range(len(sets[0]))]
            variances = [draw.samples(stratum).var() for stratum in strata]
            if np.isfinite(variances).all():
                return t_interval(value, variances, [sets[i].shape[-1] for i, _ in strata], level=level)
        low, high = np.quantile(draw.samples(), [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return Interval(value, float(low), float(high))


class _Draw(NamedTuple):
    """Bootstrap samples of a statistic."""

    statistic: Callable[..., np.ndarray]
    sets: list[np.ndarray]
    paired: bool
    generator: np.random.Generator

    def samples(self, stratum: tuple[int, int] | None = None) -> np.ndarray:
        """f64[SAMPLES], seeds drawn again in all environments of all sets, or in one (set, environment) alone."""
        most = max(x.shape[-1] for x in self.sets)
        block = max(1, 2_000_000 // (self.sets[0].shape[0] * most**2))  # so that memory stays small
        counts = [min(block, SAMPLES - done) for done in range(0, SAMPLES, block)]
        return np.concatenate([self.statistic(*self._draw(count, stratum)) for count in counts])

    def _draw(self, count: int, stratum: tuple[int, int] | None) -> list[np.ndarray]:
        drawn, index = [], None
        for i, x in enumerate(self.sets):
            if index is None or not self.paired:
                index = self.generator.integers(0, x.shape[-1], (count, *x.shape))
                if stratum is not None:
                    of_all = np.broadcast_to(np.arange(x.shape[-1]), index.shape)
                    here = np.arange(len(x)) == (stratum[1] if self.paired or i == stratum[0] else -1)
                    index = np.where(here[:, None], index, of_all)
            drawn.append(np.take_along_axis(x[None], index, axis=-1))
        return drawn


def t_interval(value: float, variances: Sequence[float], sizes: Sequence[int], *, level: float = 0.95) -> Interval:
    """value +- t se, from the bootstrap variances of a statistic in independent strata of these sizes.

        se^2 = sum_k v_k n_k / (n_k - 1),    nu = se^4 / sum_k (v_k n_k / (n_k - 1))^2 / (n_k - 1)

    The factor n / (n - 1) undoes the bootstrap's bias, which draws from a sample as if it were the population; nu are the degrees
    of freedom of t. Of a mean this is Student's interval, and of a difference of two means Welch's.
    References: Welch 1947, Biometrika 34; Hesterberg 2015, section 4.1, arXiv:1411.5279.
    """
    count = np.asarray(sizes, np.float64)
    parts = np.asarray(variances, np.float64) * count / (count - 1)
    total = parts.sum()
    if total <= 0:
        return Interval(value, value, value)
    freedom = total**2 / (parts**2 / (count - 1)).sum()
    half = float(stdtrit(freedom, (1 + level) / 2) * np.sqrt(total))
    return Interval(value, value - half, value + half)


def score_interval(value: float, ours: int, theirs: int, *, environments: int = 1, level: float = 0.95) -> Interval:
    """The interval of a probability of improvement p from m of our seeds and n of theirs: all q with (p - q)^2 <= z^2 V(q).

        V(q) = q (1 - q) / (m n) (1 + ((m + n) / 2 - 1) ((1 - q) / (2 - q) + q / (1 + q)))

    Divided by the number of environments for an average over them. It has a width where every seed of one is ahead and the
    bootstrap has none. Reference: Newcombe 2006, method 5, Statistics in Medicine 25:559.
    """
    q = np.linspace(0.0, 1.0, 10_001)
    spread = 1 + ((ours + theirs) / 2 - 1) * ((1 - q) / (2 - q) + q / (1 + q))
    variance = q * (1 - q) / (ours * theirs * environments) * spread
    inside = q[(value - q) ** 2 <= ndtri((1 + level) / 2) ** 2 * variance + 1e-12]
    return Interval(value, float(min(inside[0], value)), float(max(inside[-1], value)))


def over_runs(
    statistic: Callable[..., np.ndarray], *groups: Sequence[np.ndarray], level: float = 0.95, seed: int = 0
) -> Interval:
    """A statistic of methods, each of which was run several times, and its interval over other runs and other tasks.

    Args:
      statistic: takes each group as f64[..., K, E, S] and returns f64[...].
      groups: for each method the scores f[E, S] of its K >= 2 runs (meta-seeds). Item s of environment e (a level, with an
        agent's keys) is the same in all runs of all groups.

    Two levels: runs are drawn again within each group, and items within each environment, the same ones for all runs. With 8 runs
    or more this is a percentile bootstrap of both at once; with fewer, `t_interval`, whose strata are the groups' runs and the
    environments' items. Raises ValueError for a group of fewer than two runs.
    """
    sets = [np.stack([np.asarray(run, np.float64) for run in group]) for group in groups]
    fewest = min(len(x) for x in sets)
    if fewest < 2:
        raise ValueError(f"an interval over runs needs at least 2 of each method, and there is {fewest}.")
    if len({x.shape[1:] for x in sets}) > 1:
        raise ValueError(f"runs must be scored on the same items, and have shapes {[x.shape[1:] for x in sets]}.")
    generator, (environments, items) = np.random.default_rng(seed), sets[0].shape[1:]

    def samples(runs_of: Sequence[int], items_of: Sequence[int]) -> np.ndarray:
        index = np.broadcast_to(np.arange(items), (environments, items)).copy()
        out = []
        for _ in range(SAMPLES):
            for e in items_of:
                index[e] = generator.integers(0, items, items)
            picked = [x[generator.integers(0, len(x), len(x))] if i in runs_of else x for i, x in enumerate(sets)]
            out.append(statistic(*(np.take_along_axis(x, index[None], axis=-1) for x in picked)))
        return np.asarray(out, np.float64)

    with np.errstate(invalid="ignore"):
        value = float(statistic(*sets))
        if fewest < FEW:
            parts = [samples([i], []).var() for i in range(len(sets))] + [samples([], range(environments)).var()]
            if np.isfinite(parts).all():
                return t_interval(value, parts, [*map(len, sets), items], level=level)
        both = samples(range(len(sets)), range(environments))
    low, high = np.quantile(both, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return Interval(value, float(low), float(high))


def iqm_interval(scores: np.ndarray) -> Interval:
    """IQM with its 95% interval, of f[E, S] or f[S]; of a single seed, that seed."""
    scores = np.atleast_2d(np.asarray(scores, np.float64))
    if scores.shape[-1] == 1:
        return Interval(*[float(iqm(scores))] * 3)
    return interval(iqm, scores)


def few_seeds_note(count: int) -> str:
    """A sentence of warning for fewer than 8 seeds; empty for more."""
    if count >= FEW:
        return ""
    kind = "there is no interval" if count < 2 else "intervals are t-intervals, wide and sensitive to outliers"
    return f"Fewer than {FEW} seeds (here {count}): {kind}. Use {FEW} seeds or more for bootstrap intervals."


def _worst(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    return np.where(np.isnan(scores), -np.inf, scores)


def _sorted(scores: np.ndarray) -> np.ndarray:
    """Over the last two axes together."""
    scores = _worst(scores)
    return np.sort(scores.reshape((*scores.shape[:-2], -1)), axis=-1)
