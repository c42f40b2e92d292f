"""Evolution climbs, pairs share what they should, and nothing diverged reaches the mean."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from crash import LONG

import learned_objectives as lo
from discover.searches.evolution import STRATEGIES, Evolution, EvolutionConfig, centred_rank, pairwise, z_score

TEMPLATE = lo.Mirror(drift=lo.DPO(jnp.float32(0.0), jnp.float32(0.0)))
GOAL = lo.Mirror(drift=lo.DPO(jnp.float32(1.5), jnp.float32(-0.5)))
# Compiling is nearly all the cost of these tests, and this halves it.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@cache
def program(config, fitness_of, shaping):
    """(the strategy, its first state, a generation), compiled once for all tests."""
    evolution = made(config)

    @jit
    def step(state, generation):
        key = jax.random.fold_in(jax.random.key(1), generation)
        population, state = evolution.ask(key, state, generation)
        fitness = fitness_of(population, generation)
        return evolution.tell(key, population, fitness, state, shaping(fitness))

    return evolution, jit(evolution.init)(jax.random.key(0)), step


def made(config, template=TEMPLATE):
    evolution = Evolution(config, template)
    evolution.params  # it keeps them, and they must not be of a trace  # noqa: B018
    return evolution


def search(config, fitness_of, generations, shaping=centred_rank):
    evolution, state, step = program(config, fitness_of, shaping)
    for generation in range(generations):
        state = step(state, jnp.int32(generation))
    return evolution, state


def quadratic(population, generation=0):
    return -sum(
        (leaf - goal) ** 2 for leaf, goal in zip(jax.tree.leaves(population), jax.tree.leaves(GOAL), strict=True)
    )


@pytest.mark.parametrize("strategy", ["Open_ES", "SNES", "Sep_CMA_ES", "PGPE", "CMA_ES"])
def test_every_kind_of_strategy_climbs_a_quadratic(strategy):
    config = EvolutionConfig(strategy=strategy, population=32, sigma=0.2, learning_rate=0.1)
    evolution, state = search(config, quadratic, 80)
    mean = evolution.mean(state)
    assert -quadratic(mean) < 0.05 < -quadratic(TEMPLATE)


def test_random_search_keeps_the_best_and_draws_around_its_start():
    """The expected mean is found by hand: the best of all candidates that there were."""
    config = EvolutionConfig(strategy="RandomSearch", population=16, sigma=0.5)
    evolution, state, _ = program(config, quadratic, centred_rank)
    seen = []
    for generation in range(5):
        key = jax.random.fold_in(jax.random.key(1), generation)
        population, state = evolution.ask(key, state, jnp.int32(generation))
        seen.append(np.stack([np.asarray(x).reshape(-1) for x in jax.tree.leaves(population)], axis=-1))
        fitness = quadratic(population)
        state = evolution.tell(key, population, fitness, state, centred_rank(fitness))
    every = np.concatenate(seen)
    goal = np.array([float(x) for x in jax.tree.leaves(GOAL)])
    best = every[np.argmin(((every - goal) ** 2).sum(-1))]
    np.testing.assert_allclose([float(x) for x in jax.tree.leaves(evolution.mean(state))], best)
    fresh = np.concatenate([x[1:] for x in seen])
    assert abs(fresh.mean()) < 0.2
    assert 0.4 < fresh.std() < 0.6


@pytest.mark.parametrize("shaping", [centred_rank, z_score, pairwise])
def test_every_shaping_climbs(shaping):
    config = EvolutionConfig(population=32, sigma=0.2, learning_rate=0.1)
    evolution, state = search(config, quadratic, 80, shaping)
    assert -quadratic(evolution.mean(state)) < 0.05


def test_generation_zero_is_the_unperturbed_template():
    evolution = Evolution(EvolutionConfig(population=4), GOAL)
    mean = evolution.mean(evolution.init(jax.random.key(0)))
    assert jax.tree.leaves(mean) == jax.tree.leaves(GOAL)


@pytest.mark.parametrize("strategy", ["Open_ES", "PGPE"])
def test_pairs_are_antithetic(strategy):
    evolution = Evolution(EvolutionConfig(strategy=strategy, population=6, sigma=0.3), GOAL)
    state = evolution.init(jax.random.key(0))
    population, _ = evolution.ask(jax.random.key(1), state, jnp.int32(0))
    for leaf, centre in zip(jax.tree.leaves(population), jax.tree.leaves(GOAL), strict=True):
        assert leaf.shape == (3, 2)
        np.testing.assert_allclose(leaf.mean(axis=1), np.full(3, centre), rtol=1e-5)


def test_sigma_does_not_lag():
    config = EvolutionConfig(population=8, sigma=0.4, sigma_decay=0.5, sigma_floor=0.06)
    evolution = made(config)
    state, ask = jit(evolution.init)(jax.random.key(0)), jit(evolution.ask)

    def spread(generation):
        population, _ = ask(jax.random.key(1), state, jnp.int32(generation))
        return np.asarray(population.drift.alpha)

    noise = spread(0) / 0.4
    for generation, sigma in enumerate([0.4, 0.2, 0.1, 0.06]):
        np.testing.assert_allclose(spread(generation), sigma * noise, rtol=1e-5)


def test_learning_rate_does_not_lag():
    # Adam's first step is the learning rate long, and with one direction every later one is too.
    config = EvolutionConfig(population=64, learning_rate=0.1, learning_rate_decay=0.5)
    means, upwards = [], lambda population, _: population.drift.alpha
    for generations in range(4):
        evolution, state = search(config, upwards, generations)
        means.append(float(evolution.mean(state).drift.alpha))
    np.testing.assert_allclose(np.diff(means), [0.1, 0.05, 0.025], rtol=0.15)


def test_centred_rank_agrees_with_scipy():
    fitness = jnp.float32([[3.0, 1.0], [2.0, 2.0], [9.0, -4.0]])
    expected = (scipy.stats.rankdata(np.asarray(fitness).ravel()) - 1).reshape(3, 2) / 5 - 0.5
    np.testing.assert_allclose(centred_rank(fitness), expected, atol=1e-6)


def test_centred_rank_is_invariant_to_monotone_maps():
    fitness = jax.random.normal(jax.random.key(0), (16, 2))
    np.testing.assert_array_equal(centred_rank(fitness), centred_rank(jnp.exp(3 * fitness) + 7))


def test_the_diverged_rank_last():
    fitness = jnp.float32([[3.0, jnp.nan], [jnp.inf, 2.0], [-jnp.inf, 5.0]])
    np.testing.assert_allclose(centred_rank(fitness), [[0.3, -0.3], [-0.3, 0.1], [-0.3, 0.5]], atol=1e-6)
    np.testing.assert_array_equal(pairwise(fitness), [[1, 0], [0, 1], [0, 1]])
    shaped = z_score(fitness)
    assert jnp.isfinite(shaped).all()
    assert shaped[0, 1] == shaped[1, 0] == shaped[1, 1] == shaped.min()


def test_z_score_agrees_with_numpy():
    fitness = jax.random.normal(jax.random.key(0), (8, 2))
    x = np.asarray(fitness, np.float64)
    np.testing.assert_allclose(z_score(fitness), (x - x.mean()) / x.std(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shaping", [centred_rank, z_score, pairwise])
def test_the_largest_numbers_are_shaped_into_finite_ones(shaping):
    shaped = shaping(jnp.float32([[3e38, 1.0], [-3e38, 2e38], [3e38, jnp.nan]]))
    assert jnp.isfinite(shaped).all()
    assert shaped[0, 0] > shaped[0, 1]


def test_pairwise_gives_ties_one_half_each():
    fitness = jnp.float32([[1.0, 1.0], [2.0, 3.0], [5.0, 4.0], [jnp.nan, jnp.nan]])
    np.testing.assert_array_equal(pairwise(fitness), [[0.5, 0.5], [0, 1], [1, 0], [0.5, 0.5]])


def half_diverged(population, generation):
    return jnp.where(jnp.arange(4)[:, None] % 2 == 0, jnp.float32([[jnp.nan, jnp.inf]]), quadratic(population))


SOME = ["Open_ES", "SNES", "Sep_CMA_ES", "PGPE"]
PAIRED = [(strategy, centred_rank) for strategy in SOME] + [("Open_ES", z_score), ("Open_ES", pairwise)]
OTHERS = [(strategy, shaping) for strategy in SOME[1:] for shaping in (z_score, pairwise)] if LONG else []


@pytest.mark.parametrize(("strategy", "shaping"), PAIRED + OTHERS)
def test_no_diverged_candidate_reaches_the_mean(strategy, shaping):
    config = EvolutionConfig(strategy=strategy, population=8, sigma=0.1)
    evolution, state = search(config, half_diverged, 5, shaping)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(evolution.mean(state)))


def diverged_from_three(population, generation):
    return jnp.where(generation < 3, quadratic(population), jnp.nan)


@pytest.mark.parametrize("strategy", SOME)
def test_a_generation_in_which_all_diverge_leaves_the_search_where_it_was(strategy):
    config = EvolutionConfig(strategy=strategy, population=8, sigma=0.1)
    first, before, now = (
        evolution.mean(state)
        for evolution, state in (search(config, diverged_from_three, generations) for generations in (2, 3, 4))
    )
    assert jax.tree.leaves(first) != jax.tree.leaves(before)
    assert jax.tree.leaves(before) == jax.tree.leaves(now)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"population": 5}, "population must be even"),
        ({"population": 0}, "population must be at least 1"),
        ({"strategy": "OpenES"}, "did you mean 'Open_ES'"),
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"sigma_decay": 1.5}, "sigma_decay must be in"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"shaping": "rank"}, "Unknown shaping"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        EvolutionConfig(**changes)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_sigma_means_the_same_in_every_strategy(strategy):
    template = lo.Mirror(drift=lo.LPO.create(jax.random.key(0), width=8))
    evolution = made(EvolutionConfig(strategy=strategy, population=32, sigma=0.03), template)
    first = jit(lambda key, other: evolution.ask(other, evolution.init(key), jnp.int32(0))[0])
    population = first(jax.random.key(0), jax.random.key(1))
    moved = jax.tree.map(lambda x, mean: np.asarray(x) - np.asarray(mean), population, template)
    spread = np.std(np.concatenate([np.ravel(x) for x in jax.tree.leaves(moved)]))
    np.testing.assert_allclose(spread, 0.03, rtol=0.15)
