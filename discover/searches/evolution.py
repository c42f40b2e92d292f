"""Evolution strategies over objectives: any distribution strategy of evosax, paired tasks, shaped fitness.

Fitness here is higher-is-better everywhere; evosax minimises, and the sign turns once, in `Evolution.tell`.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import evosax.algorithms as algorithms
import jax
import jax.numpy as jnp
import optax
from evosax.core.fitness_shaping import identity_fitness_shaping_fn

from discover.names import unknown
from discover.plugins import Registry
from discover.searches.config import SearchConfig
from discover.searches.random_search import RandomSearch
from envs import plugs

PyTree = Any

# Left out: two that search by subspace or bisection and two with a covariance of their own, whose first step is not sigma
# long; xNES, whose is sigma^2 long; and two that need more than a population and a mean. evosax's random search needs more as
# well, and ours takes its place.
LEFT_OUT = {
    *("ASEBO", "GuidedES", "GradientlessDescent", "iAMaLGaM_Full", "iAMaLGaM_Univariate", "xNES"),
    *("SV_CMA_ES", "SV_Open_ES"),
}
STRATEGIES: dict[str, type] = {
    name: strategy for name, strategy in algorithms.distribution_based_algorithms.items() if name not in LEFT_OUT
} | {"RandomSearch": RandomSearch}
# These follow a gradient of the mean with our optimizer, and use fitness as it is shaped here. The others have step sizes and
# recombination weights of their own.
GRADIENT = {"Open_ES", "PGPE", "ARS", "ESMC", "NoiseReuseES", "PersistentES"}


@dataclass(frozen=True)
class EvolutionConfig(SearchConfig):
    """Evolution strategies over the leaves of an objective: candidates in pairs, each judged by whole lives."""

    strategy: str = "Open_ES"  # any distribution-based strategy of evosax, by its name there, or RandomSearch
    population: int = 64  # candidates per generation (even: they form pairs)
    lives: int = 1  # agents trained per candidate and environment, each from another key
    racing: float = 1.0  # share of the candidates that go on from each life to the next; the others' lives are saved
    shared_keys: Literal["pair", "population"] = "population"  # which candidates share a task and its random keys
    shaping: str = "centred_rank"  # what a candidate's fitness becomes: centred_rank, z_score, pairwise, or yours
    sigma: float = 0.03  # standard deviation of the perturbations (their start, where a strategy adapts it)
    sigma_decay: float = 1.0  # per generation, for strategies that follow a schedule, such as Open_ES
    sigma_floor: float = 0.0  # lower bound of sigma, where it decays
    learning_rate: float = 0.03  # of Adam on the mean, where a strategy follows a gradient, such as Open_ES or PGPE
    learning_rate_decay: float = 1.0  # per generation
    learning_rate_floor: float = 0.0  # lower bound of the learning rate
    adam_b1: float = 0.9  # decay of the first moment of Adam on the mean
    adam_b2: float = 0.999  # decay of its second moment

    unit: ClassVar[str] = "pairs"
    candidates_per_item: ClassVar[int] = 2

    def __post_init__(self):
        if self.strategy not in STRATEGIES:
            raise unknown("strategy", self.strategy, STRATEGIES)
        for name in ("population", "lives"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, and is {getattr(self, name)}.")
        if self.population % 2:
            raise ValueError(
                f"population must be even, because candidates come in pairs, and is {self.population}: "
                f"try {self.population + 1}."
            )
        self.check_chunk()
        for name in ("sigma", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, and is {getattr(self, name)}.")
        for name in ("sigma_floor", "learning_rate_floor"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, and is {getattr(self, name)}.")
        for name in ("adam_b1", "adam_b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), and is {getattr(self, name)}.")
        for name in ("sigma_decay", "learning_rate_decay"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in (0, 1], and is {getattr(self, name)}.")
        if self.shared_keys not in ("pair", "population"):
            raise ValueError(f"shared_keys must be 'pair' or 'population', and is {self.shared_keys!r}.")
        if not 0 < self.racing <= 1:
            raise ValueError(f"racing must be in (0, 1], and is {self.racing}.")
        if self.racing < 1 and self.lives < 2:
            raise ValueError(
                f"racing {self.racing} needs lives of at least 2, because candidates stop between lives, and lives is "
                f"{self.lives}."
            )
        if self.racing < 1 and self.shared_keys != "population":
            raise ValueError(
                f"racing compares all candidates in the same tasks: set shared_keys to 'population', not {self.shared_keys!r}."
            )
        SHAPINGS.require(self.shaping)

    @property
    def items(self) -> int:
        return self.population // 2

    @property
    def lives_per_item(self) -> int:
        return 2 * (self.lives if self.racing == 1 else 1)

    def build(self, problem):
        return plugs.resolve("discover.searches.evolution_search:EvolutionSearch")(self, problem)


@dataclass(frozen=True, eq=False)
class Evolution:
    """ask and tell over objectives. The state is evosax's own: arrays only."""

    config: EvolutionConfig
    template: PyTree  # an objective: the structure that is searched

    @cached_property
    def strategy(self):
        c = self.config
        cls = STRATEGIES[c.strategy]
        arguments = inspect.signature(cls).parameters
        options: dict[str, Any] = {"metrics_fn": lambda *_: {}}
        if c.strategy in GRADIENT:
            rate = _decay(c.learning_rate, c.learning_rate_decay, c.learning_rate_floor)
            options["optimizer"] = optax.adam(rate, c.adam_b1, c.adam_b2)
            options["fitness_shaping_fn"] = identity_fitness_shaping_fn
        return cls(
            population_size=c.population,
            solution=self.template,
            **{name: value for name, value in options.items() if name in arguments},
        )

    @cached_property
    def params(self):
        params = self.strategy.default_params
        if hasattr(params, "std_init"):
            params = params.replace(std_init=jnp.float32(self.config.sigma))
        return params

    def init(self, key: jax.Array) -> PyTree:
        """A state whose mean is the template itself, unperturbed."""
        state = self.strategy.init(key, self.template, self.params)
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), state)

    def ask(self, key: jax.Array, state: PyTree, generation: jax.Array) -> tuple[PyTree, PyTree]:
        """The generation's candidates, leaves [P // 2, 2, ...], and the state to `tell` about them.

        The two members of a pair lie along axis 1. Where a strategy samples antithetically, they are mean + e and mean - e.
        """
        if self._scheduled:  # evosax's own schedule lags one generation
            state = state.replace(std=self.sigma(state, generation))
        population, state = self.strategy.ask(key, state, self.params)
        return jax.tree.map(_pair, population), state

    def tell(
        self,
        key: jax.Array,
        population: PyTree,
        fitness: jax.Array,
        state: PyTree,
        shaped: jax.Array,
    ) -> PyTree:
        """The next state, from fitness that is already shaped: f32[P // 2, 2], higher is better, finite.

        `fitness` f32[P // 2, 2, ...] is the raw one: where not a single candidate has a finite one, the search stays where
        it is.
        """
        candidates = jax.tree.map(_unpair, population)
        after, _ = self.strategy.tell(key, candidates, -_unpair(shaped), state, self.params)
        learned = jnp.isfinite(fitness).any()
        return jax.tree.map(lambda new, old: jnp.where(learned, new, old), after, state)

    @property
    def _scheduled(self) -> bool:
        return "std_schedule" in inspect.signature(STRATEGIES[self.config.strategy]).parameters

    def sigma(self, state: PyTree, generation: jax.Array | int) -> jax.Array:
        """f32[]: the size of the perturbations that `ask` makes in this generation, the mean over coordinates."""
        c = self.config
        if self._scheduled:
            return jnp.asarray(_decay(c.sigma, c.sigma_decay, c.sigma_floor)(generation))
        return jnp.mean(state.std)

    def mean(self, state: PyTree) -> PyTree:
        """The objective at the centre of the search: what a run reports and exports."""
        return self.strategy.get_mean(state)


def _decay(start: float, factor: float, floor: float) -> optax.Schedule:
    return lambda count: jnp.maximum(start * factor ** jnp.asarray(count, jnp.float32), floor)


def _pair(x: jax.Array) -> jax.Array:
    """[P, ...] with partners P // 2 apart, as evosax lays them -> [P // 2, 2, ...]."""
    return jnp.moveaxis(x.reshape((2, -1, *x.shape[1:])), 0, 1)


def _unpair(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, 1, 0).reshape((-1, *x.shape[2:]))


def centred_rank(fitness: jax.Array) -> jax.Array:
    """Ranks over the population, in [-0.5, 0.5]; ties share their mean rank; the diverged are last, together."""
    worst_last = jnp.where(jnp.isfinite(fitness), fitness, -jnp.inf)
    ranks = jax.scipy.stats.rankdata(worst_last.ravel()).reshape(fitness.shape)
    return (ranks - 1.0) / max(fitness.size - 1, 1) - 0.5


def z_score(fitness: jax.Array) -> jax.Array:
    """(fitness - mean) / std over the population; the diverged count as the worst that did not. Beyond 1e15 all are alike:
    squares must stay finite."""
    finite = jnp.isfinite(fitness)
    fitness = jnp.where(finite, jnp.clip(fitness, -1e15, 1e15), fitness)
    worst = jnp.where(finite, fitness, jnp.inf).min()
    fitness = jnp.where(finite, fitness, jnp.where(jnp.isfinite(worst), worst, 0.0))
    return (fitness - fitness.mean()) / (fitness.std() + 1e-8)


def pairwise(fitness: jax.Array) -> jax.Array:
    """Within each pair, 1 to the winner and 0 to the loser, 1/2 each for a tie: right where pairs have tasks of different
    scales. Reference: Jackson et al. 2024, eq. 12, arXiv:2402.05828 (whose code gives every tie to the second)."""
    fitness = jnp.where(jnp.isfinite(fitness), fitness, -jnp.inf)
    mine, other = fitness, fitness[:, ::-1]
    return jnp.where(mine > other, 1.0, jnp.where(mine < other, 0.0, 0.5))


# A shaping: f32[P // 2, 2] -> f32[P // 2, 2]; higher is better. The fitness of a candidate that diverged is not finite; all that
# is returned must be.
SHAPINGS = Registry(
    "shapings",
    "shaping",
    {"centred_rank": centred_rank, "z_score": z_score, "pairwise": pairwise},
    "a function of the fitness",
)
