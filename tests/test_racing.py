"""Racing gives later lives to the better candidates alone, ranks them above the others, and counts what it saved."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from discover import recipes
from discover.agents.config import AgentConfig
from discover.searches.evolution import EvolutionConfig, centred_rank
from discover.searches.evolution_search import EvolutionSearch
from discover.searches.families import FormulaConfig
from discover.searches.problem import Problem
from discover.searches.racing import race, sizes, standing
from discover.searches.recipe import Recipe
from discover.searches.rolling_search import RollingConfig


class Table:
    """In place of a problem: the fitness of candidate c in round r is `values[r, c]`. It notes who had lives."""

    def __init__(self, values):
        self.values, self.asked = np.asarray(values, np.float32), []
        self.settings = (None,)

    def fitness(self, candidates, key):
        who = np.asarray(candidates["number"]).reshape(-1)
        self.asked.append(who.tolist())
        return jnp.asarray(self.values[len(self.asked) - 1][who]).reshape(-1, 2, 1)


def raced(values, share):
    table = Table(values)
    count = table.values.shape[1]
    population = {"number": jnp.arange(count).reshape(-1, 2)}
    fitness, ranks = race(table, population, jax.random.key(0), centred_rank, share=share, rounds=len(table.values))
    return table.asked, np.asarray(fitness)[..., 0].reshape(-1), np.asarray(ranks).reshape(-1)


def test_the_better_half_goes_on_each_time():
    asked, fitness, ranks = raced([[8, 1, 7, 2, 6, 3, 5, 4], [1, 9, 2, 9, 3, 9, 4, 9], [5, 9, 9, 9, 6, 9, 9, 9]], 0.5)
    # Ranks of round 1 among the eight and of round 2 among the four, by hand: means of candidates 0, 2, 4, 6 are
    # (0.5 - 0.5) / 2 = 0, (0.357 - 0.167) / 2 = 0.095, (0.214 + 0.167) / 2 = 0.190 and (0.071 + 0.5) / 2 = 0.286.
    assert asked == [[0, 1, 2, 3, 4, 5, 6, 7], [0, 2, 4, 6], [4, 6]]
    np.testing.assert_allclose(fitness, [4.5, 1, 4.5, 2, 5, 3, 6, 4])
    # The two finalists, then 2 and 0, then the odd ones by their only life.
    np.testing.assert_allclose(ranks, (np.array([4, 0, 5, 1, 6, 2, 7, 3]) / 7) - 0.5, atol=1e-6)


def test_one_round_is_the_usual_ranking():
    values = np.random.default_rng(0).normal(size=(1, 10))
    _, _, ranks = raced(values, 0.5)
    np.testing.assert_allclose(ranks, (scipy.stats.rankdata(values[0]) - 1) / 9 - 0.5, atol=1e-6)


def test_a_candidate_that_diverges_stops_first():
    asked, fitness, ranks = raced([[np.nan, 2, 3, 4], [0, 0, 1, 2]], 0.5)
    assert asked[1] == [2, 3]
    assert np.isnan(fitness[0])
    assert ranks[0] == -0.5


def test_sizes_are_even_and_at_least_two():
    assert sizes(16, 0.5, 4) == [16, 8, 4, 2]
    assert sizes(10, 0.5, 3) == [10, 6, 4]
    assert sizes(6, 0.1, 3) == [6, 2, 2]
    assert sizes(8, 1.0, 2) == [8, 8]


def test_ties_share_a_rank():
    np.testing.assert_allclose(
        standing(np.array([1.0, 1.0, 2.0, 0.0]), np.array([0, 0, 1, 1])), [-1 / 3, -1 / 3, 0.5, 1 / 6]
    )


SMALL = Recipe(
    objective=FormulaConfig("ppo"),
    total_steps=1024,
    agent=AgentConfig(num_envs=4, num_steps=32, hidden=(8,)),
    search=EvolutionConfig(population=8, lives=3, racing=0.5, sigma=0.1),
)


def test_steps_that_were_saved_are_not_counted():
    search = EvolutionSearch(SMALL.search, Problem(SMALL))
    state = search.init()
    search.step(state, 0)
    assert search.problem.updates == (8 + 4 + 2) * 1024 // 128
    assert search.updates_per_step == search.problem.updates


def test_survivors_have_what_all_lives_would_give_them():
    problem = Problem(SMALL)
    search = EvolutionSearch(SMALL.search, problem)
    population, _ = search.evolution.ask(problem.key("ask", 0), search.init(), jnp.int32(0))
    key = problem.key("life", 0)
    fitness, ranks = race(problem, population, key, centred_rank, share=0.5, rounds=3)
    every = np.stack([problem.fitness(population, jax.random.fold_in(key, r)) for r in range(3)])
    final = np.sort(np.asarray(ranks).reshape(-1))[-2:]
    survivors = np.isin(np.asarray(ranks), final)
    assert survivors.sum() == 2
    np.testing.assert_allclose(np.asarray(fitness)[survivors], every.mean(0)[survivors], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"racing": 0.0, "lives": 2}, r"racing must be in \(0, 1\], and is 0.0"),
        ({"racing": 1.5, "lives": 2}, r"racing must be in \(0, 1\], and is 1.5"),
        ({"racing": 0.5}, "racing 0.5 needs lives of at least 2"),
        ({"racing": 0.5, "lives": 2, "shared_keys": "pair"}, "set shared_keys to 'population', not 'pair'"),
    ],
)
def test_a_race_that_cannot_be_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        EvolutionConfig(population=4, **changes)


def test_a_share_that_stops_nobody_is_refused():
    recipe = replace(SMALL, search=replace(SMALL.search, racing=0.99))
    with pytest.raises(ValueError, match="stops no candidate of a population of 8"):
        EvolutionSearch(recipe.search, Problem(recipe))


def test_lives_that_roll_on_do_not_race():
    with pytest.raises(ValueError, match="racing must be 1, and is 0"):
        replace(recipes.lpo_small().search, racing=0.5, lives=2)
    assert isinstance(recipes.lpo_small().search, RollingConfig)
