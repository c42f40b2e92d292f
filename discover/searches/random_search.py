"""Random search as a strategy of evosax: the baseline of every other one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from evosax.algorithms.distribution_based.base import DistributionBasedAlgorithm, Params, State, metrics_fn
from evosax.core.fitness_shaping import identity_fitness_shaping_fn
from flax import struct

PyTree = Any


@struct.dataclass
class RandomParams(Params):
    std_init: jax.Array  # f32[]


@struct.dataclass
class RandomState(State):
    start: jax.Array  # f32[D], around which candidates are drawn
    std: jax.Array  # f32[]


class RandomSearch(DistributionBasedAlgorithm):
    """The mean is the best candidate so far. It takes part in every generation, so it is judged in the same tasks as the others.

        x_0 = mean,    x_i ~ N(start, std^2) for i > 0,    mean <- the best x_i

    The draws do not depend on what was found. With noisy fitness a mean can lose its place to a worse candidate; more lives, or
    racing, make this rarer.
    """

    def __init__(
        self, population_size, solution, fitness_shaping_fn=identity_fitness_shaping_fn, metrics_fn=metrics_fn
    ):
        super().__init__(population_size, solution, fitness_shaping_fn, metrics_fn)

    @property
    def _default_params(self) -> RandomParams:
        return RandomParams(std_init=jnp.float32(1.0))

    def init(self, key: jax.Array, mean: PyTree, params: RandomParams) -> RandomState:
        state = super().init(key, mean, params)
        return state.replace(start=state.mean)

    def _init(self, key, params):
        nothing = jnp.full((self.num_dims,), jnp.nan)
        return RandomState(
            mean=nothing,
            start=nothing,
            std=params.std_init,
            best_solution=nothing,
            best_fitness=jnp.inf,
            generation_counter=0,
        )

    def _ask(self, key, state, params):
        drawn = state.start + state.std * jax.random.normal(key, (self.population_size, self.num_dims))
        return drawn.at[0].set(state.mean), state

    def _tell(self, key, population, fitness, state, params):
        return state.replace(mean=population[jnp.argmin(fitness)])
