"""Lives that roll on from one generation to the next: who is born when, what perturbs them, and that a run resumes."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import discover
from discover import AgentConfig, LPOConfig, Recipe, RollingConfig
from discover.runs.loop import last_state
from discover.searches import registry
from discover.searches.outer_loop import OuterLoop
from discover.searches.problem import Problem

pytestmark = pytest.mark.slow

EVOLUTION = RollingConfig(population=8, window=2, shaping="pairwise", sigma=0.1, chunk=2)
ROLLING = Recipe(
    objective=LPOConfig(width=4),
    total_steps=8 * 32,  # eight updates: four windows
    generations=6,
    evaluate_every=3,
    evaluation_seeds=2,
    checkpoint_every=1,
    agent=AgentConfig(num_envs=2, num_steps=16, num_minibatches=2, num_epochs=2, hidden=(8,)),
    search=EVOLUTION,
)


PROGRAMS = (
    *("lengths", "_held_out_lengths", "_evaluations", "_keep_best", "_tell"),
    *("_births", "_windows", "_renewed", "_perturbed"),
)


@pytest.fixture(scope="module")
def search():
    """Its programs are compiled once for all tests, as how long a run is does not enter them."""
    loop = registry.search_for(ROLLING)
    for name in PROGRAMS:
        for part in (loop, loop.problem, loop.search):
            getattr(part, name, None)
    return loop.search


@pytest.fixture(scope="module")
def meta_train(search):
    def sharing_programs(problem):
        loop = OuterLoop(problem)
        for part, shared in ((loop.problem, search.problem), (loop.search, search)):
            for name in PROGRAMS:
                if name in vars(shared):
                    vars(part)[name] = vars(shared)[name]
        return loop

    with mock.patch.object(registry, "OuterLoop", sharing_programs):
        yield lambda recipe, out: discover.meta_train(recipe, out, quiet=True)


@pytest.fixture(scope="module")
def whole(meta_train, tmp_path_factory):
    return meta_train(ROLLING, tmp_path_factory.mktemp("whole"))


def rolling(**changes):
    recipe = discover.recipes.replace(ROLLING, search=discover.recipes.replace(EVOLUTION, **changes))
    return OuterLoop(Problem(recipe)).search


def test_pairs_begin_their_lives_one_after_another(search):
    assert [search.began(generation).tolist() for generation in range(6)] == [
        [0, 0, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 2, 1],
        [0, 3, 2, 1],
        [4, 3, 2, 1],
        [4, 3, 2, 5],
    ]


def test_the_last_window_of_a_life_may_be_short():
    search = rolling(window=3)
    assert search.windows == 3  # of 3, 3 and 2 updates
    assert search.began(3).tolist() == [3, 3, 2, 1]
    assert search.taken(3) == 2 * (3 + 3 + 3 + 2)


def test_a_pair_keeps_its_perturbation_for_life(search):
    strategy = search.evolution.init(jax.random.key(0))
    flat = np.asarray(strategy.mean)

    def perturbations(generation):
        candidates, told = search._perturbed(strategy, jnp.int32(generation), search.began(generation))
        assert np.isclose(told.std, 0.1)
        leaves = [np.asarray(x).reshape(4, 2, -1) for x in jax.tree.leaves(candidates)]
        return np.concatenate(leaves, axis=-1) - flat

    now, then, later = perturbations(1), perturbations(2), perturbations(4)
    np.testing.assert_allclose(now[:, 0], -now[:, 1], atol=1e-6)
    np.testing.assert_array_equal(now[[0, 1, 3]], then[[0, 1, 3]])
    assert (now[2] != then[2]).all()
    assert (now[0] != later[0]).all()
    assert len(np.unique(now[:, 0, 0])) == 4
    assert abs(now[:, 0].std() / 0.1 - 1) < 0.3


def test_lives_go_on_and_begin_anew(whole):
    search, state = last_state(whole.out)
    (lives,) = state.search.lives
    age = np.asarray(lives.num_updates)[..., 0]
    expected = 2 * (6 - search.search.began(5))  # two updates a generation since it began
    np.testing.assert_array_equal(age, np.stack([expected] * 2, axis=1))
    assert int(state.updates) == 6 * 8 * 2 + 3 * 2 * 8  # windows, and three evaluations of two whole lives


def test_stopped_and_resumed_it_comes_to_the_same(meta_train, whole, tmp_path):
    meta_train(discover.recipes.replace(ROLLING, generations=3), tmp_path)
    again = meta_train(ROLLING, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.objective, whole.objective)
    kept = ("generation", "fitness", "mean_norm", "env_steps")
    rows = [[{name: row.get(name) for name in kept} for row in result.rows] for result in (again, whole)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"population": 6}, "chunk must divide the 3 pairs, and is 2"),
        ({"strategy": "SNES"}, "rolling evolution has strategy Open_ES, and strategy is SNES"),
    ],
)
def test_what_cannot_roll_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        rolling(**changes)


def test_late_windows_count_for_more():
    search = rolling(window=2, late_window_weight=1.0)
    assert search.windows == 4
    # At generation 5 lives are at their windows 2, 3, 4 and 1 of 4, whose weights 1 2 3 4 are divided by 2.5.
    assert search.began(5).tolist() == [4, 3, 2, 5]
    np.testing.assert_allclose(search.weight(5), np.array([2, 3, 4, 1]) / 2.5)


def test_a_decaying_sigma_favours_no_window():
    """A pair lives all its windows at the sigma of its birth, by which the gradient divides its part."""
    search = rolling(sigma_decay=0.5, shaping="z_score")
    strategy = search.evolution.init(jax.random.key(0))
    generation, began = 5, search.began(5)
    assert began.tolist() == [4, 3, 2, 5]
    candidates, told = search._perturbed(strategy, jnp.int32(generation), began)
    flat = jnp.concatenate([x.reshape(4, 2, -1) for x in jax.tree.leaves(candidates)], axis=-1)
    z = np.asarray(flat - strategy.mean, np.float64)[:, 0]
    born = 0.1 * 0.5**began
    np.testing.assert_allclose(z.std(1) / born, 1.0, atol=0.3)  # not sigma 0.1 * 0.5 ** 5 of this generation
    # Of each window of each pair, the same slope of the fitness: f = (sum over windows of the perturbation) @ slope.
    slope = np.random.default_rng(0).normal(size=z.shape[1])
    lived = generation - began + 1
    fitness = (lived * (z @ slope))[:, None] * np.array([1.0, -1.0])
    expected = sum(n * 2 * p * (p @ slope) / sigma**2 for n, p, sigma in zip(lived, z, born, strict=True)) / 8
    f = jnp.asarray(fitness, jnp.float32)
    weighted = search.weight(generation)[:, None] * f
    found = search.evolution.tell(jax.random.key(0), candidates, f[..., None], told, weighted)
    # Adam's first moment holds (1 - b1) of the gradient; evosax minimises.
    moment = -np.asarray(jax.tree.leaves(found.opt_state[0].mu)[0]) / 0.1
    np.testing.assert_allclose(moment, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_with_es_single_all_lives_begin_together():
    search = rolling(estimator="es_single")
    assert [search.began(generation).tolist() for generation in (0, 3, 4, 5)] == [[g] * 4 for g in (0, 0, 4, 4)]
    assert search.drawn(5).tolist() == [4] * 4


def perturbations_of(search, generation):
    """Of the candidates in a generation, and those that their fitness is multiplied by: f64[P // 2, D] each."""
    strategy = search.evolution.init(jax.random.key(0))
    now = jnp.int32(generation)
    candidates, told = search._perturbed(strategy, now, search.drawn(generation))
    summed = search._persistent(told, now, search.began(generation))
    flat = [jnp.concatenate([x.reshape(4, 2, -1) for x in jax.tree.leaves(c)], -1) for c in (candidates, summed)]
    np.testing.assert_allclose(
        flat[1][:, 0] + flat[1][:, 1], 2 * np.broadcast_to(strategy.mean, flat[1][:, 0].shape), atol=1e-5
    )
    return [np.asarray(x[:, 0] - strategy.mean, np.float64) for x in flat]


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_with_pes_every_window_has_a_perturbation_of_its_own_and_the_sum_is_kept(decay):
    """At generation 5, pairs began at 4, 3, 2 and 5; by hand, each term by the ratio of sigmas of its own and of the birth."""
    search = rolling(estimator="pes", sigma_decay=decay, shaping="z_score")
    own = {g: perturbations_of(search, g)[0] for g in range(2, 6)}
    _, summed = perturbations_of(search, 5)
    for p, born in enumerate([4, 3, 2, 5]):
        assert len({own[g][p, 0] for g in own}) == 4
        expected = sum(own[g][p] * (decay**born / decay**g) ** 2 for g in range(born, 6))
        np.testing.assert_allclose(summed[p], expected, rtol=1e-3, atol=1e-5)


def test_with_pes_the_gradient_of_a_linear_fitness_divides_each_window_by_its_own_variance():
    """f = slope . sum of the perturbations lived; PES estimates sum_g e_g (f+ - f-) / (P sigma_g^2)."""
    search, generation = rolling(estimator="pes", sigma_decay=0.5, shaping="z_score"), 5
    own = {g: perturbations_of(search, g)[0] for g in range(2, 6)}
    strategy = search.evolution.init(jax.random.key(0))
    _, told = search._perturbed(strategy, jnp.int32(generation), search.drawn(generation))
    population = search._persistent(told, jnp.int32(generation), search.began(generation))
    fitness = np.random.default_rng(0).normal(size=4)
    expected = sum(
        2 * fitness[p] * sum(own[g][p] / (0.1 * 0.5**g) ** 2 for g in range(born, 6)) / 8
        for p, born in enumerate([4, 3, 2, 5])
    )
    f = jnp.asarray(fitness[:, None] * np.array([1.0, -1.0]), jnp.float32)
    found = search.evolution.tell(
        jax.random.key(0), population, f[..., None], told, search.weight(generation)[:, None] * f
    )
    moment = -np.asarray(jax.tree.leaves(found.opt_state[0].mu)[0]) / 0.1
    np.testing.assert_allclose(moment, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("estimator", ["pes", "es_single"])
def test_other_estimators_resume_with_the_same_bytes(whole, tmp_path, estimator):
    recipe = discover.recipes.replace(ROLLING, search=discover.recipes.replace(EVOLUTION, estimator=estimator))
    uncut = discover.meta_train(recipe, tmp_path / "uncut", quiet=True)
    discover.meta_train(discover.recipes.replace(recipe, generations=3), tmp_path / "parts", quiet=True)
    parts = discover.meta_train(recipe, tmp_path / "parts", quiet=True)
    jax.tree.map(np.testing.assert_array_equal, parts.objective, uncut.objective)
    leaves = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(each.objective)]) for each in (uncut, whole)]
    assert (leaves[0] != leaves[1]).any()


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match=r"search\.estimator must be one of nres, pes, es_single, and is 'es'"):
        rolling(estimator="es")
