"""Racing: candidates that lose in the first tasks of a generation get no lives in the later ones.

Successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943) over tasks. All candidates have the first task. The best
`share` of them go on to the second, and so on. A life is never cut short: returns early in a life say little about its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from discover.searches.problem import Problem

PyTree = Any


def sizes(population: int, share: float, rounds: int) -> list[int]:
    """How many candidates have each task. Even, because candidates come in pairs, and at least 2."""
    found = [population]
    while len(found) < rounds:
        found.append(min(found[-1], max(2, 2 * math.floor(share * found[-1] / 2 + 0.5))))
    return found


def race(
    problem: Problem,
    population: PyTree,
    key: jax.Array,
    shaping: Callable[[jax.Array], jax.Array],
    *,
    share: float,
    rounds: int,
) -> tuple[jax.Array, jax.Array]:
    """The fitness of a generation, and the ranks by which the strategy learns from it.

    Args:
      population: leaves [P // 2, 2, ...].
      key: of this generation; every round has its own tasks and keys, the same for all of its candidates.
      shaping: fitness f32[n // 2, 2] in one environment -> f32[n // 2, 2], higher is better.
      share: of the candidates that go on from each round to the next.
      rounds: tasks of a candidate that always goes on.

    Returns:
      (fitness f32[P // 2, 2, E], the mean over the lives that a candidate had, NaN where one diverged;
      shaped f32[P // 2, 2]): who went on further ranks higher, and of those that ended in the same round, who had the higher
      mean of shaped fitness. Ranks lie in [-0.5, 0.5], and ties share theirs.
    """
    flat = jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), population)
    size = jax.tree.leaves(flat)[0].shape[0]
    total, taken = np.zeros((size, len(problem.settings))), np.zeros((size, 1))

    def scores(racing: np.ndarray, number: int) -> np.ndarray:
        pairs = jax.tree.map(lambda x: x[racing].reshape((-1, 2, *x.shape[1:])), flat)
        found = problem.fitness(pairs, jax.random.fold_in(key, number))
        total[racing] += np.asarray(found).reshape(len(racing), -1)
        taken[racing] += 1
        return np.asarray(jnp.stack([shaping(f) for f in jnp.moveaxis(found, -1, 0)]).mean(0)).reshape(-1)

    ranks = halve(scores, size, share=share, rounds=rounds)
    fitness = jnp.asarray(total / taken, jnp.float32).reshape(size // 2, 2, -1)
    return fitness, jnp.asarray(ranks, jnp.float32).reshape(size // 2, 2)


def halve(scores: Callable[[np.ndarray, int], np.ndarray], population: int, *, share: float, rounds: int) -> np.ndarray:
    """Ranks in [-0.5, 0.5] of a population after successive halving: f64[P].

    `scores`: (which candidates race i64[n], the number of the round) -> f64[n], higher is better.
    """
    score, last, racing = np.zeros(population), np.zeros(population, int), np.arange(population)
    for number, count in enumerate(sizes(population, share, rounds)):
        if number:  # those with the best mean so far, in the order of the population
            racing = np.sort(racing[np.argsort(-score[racing], kind="stable")[:count]])
        score[racing] += scores(racing, number)
        last[racing] = number
    return standing(score / (1 + last), last)


def standing(score: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Ranks in [-0.5, 0.5] by round of the last life, and by score among those of one round: f64[P]."""
    ranks = np.zeros(len(score))
    for number in np.unique(last):
        group = last == number
        ranks[group] = (last < number).sum() + scipy.stats.rankdata(score[group])
    return (ranks - 1.0) / (len(score) - 1) - 0.5
