"""Population-based training: exploit and explore by hand, lineages, resumed runs, devices, and what is refused."""

import functools
import json
from dataclasses import replace

import crash
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import discover
import learned_objectives as lo
from discover import AgentConfig, PBTConfig, Recipe, plots
from discover.runs.dry_run import dry_run
from discover.runs.loop import last_state
from discover.searches import curriculum as cu
from discover.searches import pbt
from discover.searches.lineage import ancestors, lineage_of, numbers_of
from discover.searches.outer_loop import OuterLoop
from discover.searches.pbt_search import PBTSearch
from discover.searches.problem import Problem

SMALL = Recipe(
    objective="ppo",
    envs=("CartPole-v1",),
    total_steps=8 * 32,  # eight updates: intervals of 3, 3 and 2
    generations=4,
    evaluate_every=2,
    evaluation_seeds=2,
    checkpoint_every=1,
    agent=AgentConfig(num_envs=2, num_steps=16, num_minibatches=2, num_epochs=2, hidden=(8,)),
    search=PBTConfig(population=8, interval=3, chunk=2, perturbation="multiplicative"),
)


@functools.cache
def compiled():
    search = PBTSearch(SMALL.search, Problem(SMALL))
    return search._births, search._intervals


def searching(**changes):
    """With programs of lives that are compiled once: these settings do not enter them."""
    recipe = replace(SMALL, search=replace(SMALL.search, **changes))
    search = PBTSearch(recipe.search, Problem(recipe))
    search._births, search._intervals = compiled()
    return search


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return discover.meta_train(SMALL, tmp_path_factory.mktemp("whole") / "run", quiet=True)


def test_the_worst_share_copies_the_best():
    score = jnp.array([0.1, -0.5, 0.5, -0.3, 0.3, -0.1])
    sources = np.stack([pbt.exploited(jax.random.key(i), score, copies=2) for i in range(64)])
    assert (sources[:, [0, 2, 4, 5]] == [0, 2, 4, 5]).all()
    for loser in (1, 3):
        assert {*sources[:, loser].tolist()} == {2, 4}
    assert 16 < (sources[:, 1] == 2).sum() < 48
    assert (sources[:, 1] != sources[:, 3]).any()


def test_members_that_diverged_copy_a_finite_one_and_equal_ones_copy_nothing():
    gone = -jnp.inf
    sources = np.stack(
        [pbt.exploited(jax.random.key(i), jnp.array([gone, gone, 0.0, gone]), copies=2) for i in range(8)]
    )
    assert (sources == 2).all()
    for score in (jnp.zeros(4), jnp.full(4, gone)):
        np.testing.assert_array_equal(pbt.exploited(jax.random.key(0), score, copies=2), [0, 1, 2, 3])
    np.testing.assert_array_equal(pbt.exploited(jax.random.key(0), jnp.array([0.0, gone, 2.0]), copies=0), [0, 1, 2])


def test_scores_are_mean_ranks_over_environments():
    returns = jnp.array([[10.0, 1.0], [20.0, 3.0], [30.0, 2.0], [40.0, jnp.nan]])
    # Ranks 1 2 3 4 and 2 4 3 1 of four, less one, over three, less a half.
    expected = [(0 + 1 / 3) / 2 - 0.5, (1 / 3 + 1) / 2 - 0.5, (2 / 3 + 2 / 3) / 2 - 0.5, -np.inf]
    np.testing.assert_allclose(pbt.scores(returns), expected, rtol=1e-6)


def test_returns_are_smoothed():
    before = jnp.array([[1.0], [jnp.nan], [3.0]])
    found = pbt.smoothed(before, jnp.array([[3.0], [5.0], [jnp.nan]]), weight=0.75)
    np.testing.assert_allclose(found, [[1.5], [5.0], [np.nan]])


def test_perturbations_have_the_distribution_that_they_say():
    leaf = jnp.full(20_000, 2.0)
    added = np.asarray(pbt.additive(jax.random.key(0), leaf, 0.1), np.float64)
    assert (added.mean(), added.std()) == pytest.approx((2.0, 0.1), rel=0.02)
    logs = np.log(np.asarray(pbt.multiplicative(jax.random.key(0), leaf, 0.1), np.float64))
    assert (logs.mean(), logs.std()) == pytest.approx((np.log(2.0), 0.1), rel=0.02)
    objective = lo.AsymmetricClip(jnp.float32(0.0), jnp.float32(0.0))
    assert (
        len({float(x) for x in jax.tree.leaves(pbt.explored(jax.random.key(0), objective, kind="additive", sigma=1.0))})
        == 2
    )


def test_a_step_copies_agents_and_perturbs_objectives_and_rates():
    """Returns by hand: 0 to 7. Members 0 and 1 are the worst, 6 and 7 the best."""
    search = searching(smoothing=0.0)
    state = search.init()
    assert float(state.rates[0]) == 1.0
    assert float(search.mean(state).drift.epsilon) == pytest.approx(0.2)
    rates = np.asarray(state.rates)
    assert (np.abs(np.log(rates)) <= np.log(4.0)).all()
    assert len({*rates.tolist()}) == 8
    program = search._intervals[0]
    trained = []

    def known(task_key, members):
        trained.append(program(task_key, members)[1])
        return jnp.arange(8.0), trained[-1]

    search._intervals = [known]
    after, row = search.step(state, 0)
    source = np.asarray(row["population"]["source"])
    assert {*source[:2].tolist()} <= {6, 7}
    np.testing.assert_array_equal(source[2:], np.arange(2, 8))
    for found, expected in zip(jax.tree.leaves(after.lives[0].params), jax.tree.leaves(trained[0].params), strict=True):
        np.testing.assert_array_equal(found, np.asarray(expected)[source])
    key_data = jax.random.key_data(after.lives[0].key)
    np.testing.assert_array_equal(key_data, jax.random.key_data(trained[0].key))
    assert len(np.unique(key_data, axis=0)) == 8
    ratio = np.asarray(after.rates) / rates[source]
    np.testing.assert_allclose(ratio[2:], 1.0)
    np.testing.assert_allclose(np.maximum(ratio[:2], 1 / ratio[:2]), 1.2, rtol=1e-5)
    before, now = np.asarray(state.objectives.drift.epsilon), np.asarray(after.objectives.drift.epsilon)
    np.testing.assert_array_equal(now[2:], before[2:])
    assert (now[:2] != before[source[:2]]).all()
    assert (np.abs(np.log(now[:2] / before[source[:2]])) < 5 * 0.2).all()
    np.testing.assert_array_equal(np.asarray(after.returns)[:, 0], np.arange(8)[source])
    assert int(after.best) == 7
    assert float(search.mean(after).drift.epsilon) == before[7]
    assert row["copied"] == 2


def test_a_member_learns_at_its_own_rate_under_its_own_objective():
    """Beside agents that are trained one by one."""
    search = searching()
    state, setting = search.init(), search.problem.settings[0]
    task_key, keys = search._keys(0, 0)
    _, after = search._intervals[0](task_key, (state.objectives, state.rates, state.lives[0]))
    learn = jax.jit(setting.agent.update)
    for p in (0, 3):
        task = setting.tasks(task_key)
        task = task.replace(learning_rate=state.rates[p] * 2.5e-4)
        agent = setting.agent.init(task, keys[p])
        objective = jax.tree.map(lambda x: x[p], state.objectives)  # noqa: B023
        for _ in range(3):
            agent, _ = learn(objective, task, agent)
        for found, expected in zip(jax.tree.leaves(after.params), jax.tree.leaves(agent.params), strict=True):
            np.testing.assert_allclose(found[p], expected, atol=1e-5)


def test_lives_go_on_and_begin_anew(whole):
    search, state = last_state(whole.out)
    assert search.search.intervals == 3
    np.testing.assert_array_equal(state.search.lives[0].num_updates, 3)  # the fourth step began new lives
    assert int(state.updates) == 8 * (3 + 3 + 2 + 3) + 3 * 2 * 8  # and three evaluations of two whole lives


def test_a_share_of_none_leaves_every_member_alone():
    search = searching(share=0.0)
    state = search.init()
    after, row = search.step(state, 0)
    np.testing.assert_array_equal(after.rates, state.rates)
    jax.tree.map(np.testing.assert_array_equal, after.objectives, state.objectives)
    assert row["copied"] == 0


def test_the_lineage_of_a_run_is_read_from_its_log(whole):
    lineage = lineage_of(whole.rows)
    assert lineage.source.shape == (4, 8)
    assert [row["copied"] for row in whole.rows[1:]] == (lineage.source != np.arange(8)).sum(1).tolist()
    moved = lineage.source[:-1] != np.arange(8)
    epsilon, rates = lineage.leaves["drift.epsilon"], lineage.rates
    for g in range(3):
        kept = ~moved[g]
        np.testing.assert_array_equal(epsilon[g + 1, kept], epsilon[g, kept])
        np.testing.assert_array_equal(rates[g + 1, kept], rates[g, kept])
        copied = rates[g + 1, moved[g]] / rates[g, lineage.source[g, moved[g]]]
        np.testing.assert_allclose(np.maximum(copied, 1 / copied), 1.2, rtol=1e-5)
    _, state = last_state(whole.out)
    best = int(np.argmax(lineage.score[-1]))
    assert best == int(state.search.best)
    assert float(whole.objective.drift.epsilon) in [
        float(np.float32(x)) for x in (*epsilon[:, best], 0.2, *epsilon.ravel())
    ]


def test_ancestors_by_hand():
    rows = [{"generation": 0}]
    for g, source in enumerate(([0, 1, 0], [2, 1, 2], [0, 1, 1]), start=1):
        population = {"source": source, "score": [0.1, None, 0.3], "rates": [1.0] * 3}
        population |= {"returns": {"E": [1.0, None, 2.0]}, "leaves": {"x": [1.0, 2.0, 3.0]}}
        rows.append({"generation": g, "population": population})
    lineage = lineage_of(json.loads(json.dumps(rows)))
    assert np.isnan(lineage.score[:, 1]).all()
    assert ancestors(lineage).tolist() == [0, 2, 2]
    assert ancestors(lineage, 1).tolist() == [1, 1, 1]
    figure = plots.descent(lineage)
    black = [line for line in figure.axes[0].lines if line.get_color() == "black"]
    np.testing.assert_array_equal(black[0].get_data(), [[1, 2, 3], [0, 2, 2]])
    (segments,) = (c for c in figure.axes[0].collections if hasattr(c, "get_segments"))
    expected = [[(g + 1, rows[g + 1]["population"]["source"][p]), (g + 2, p)] for g in range(2) for p in range(3)]
    np.testing.assert_array_equal(segments.get_segments(), expected)
    with pytest.raises(ValueError, match="these rows hold no lineage"):
        lineage_of(rows[:1])
    with pytest.raises(ValueError, match=r"needs the rows of all generations from 1 on, and these are \[2, 3\]"):
        lineage_of(rows[2:])


def test_a_large_objective_is_logged_by_its_norm():
    objectives = {"a": jnp.ones((2, 8, 8)), "b": jnp.full((2, 1), 6.0)}
    np.testing.assert_allclose(numbers_of(objectives)["norm"], 10.0)
    assert list(numbers_of({"a": jnp.ones((2, 1, 2)), "b": jnp.ones(2)})) == ["['a'][0, 0]", "['a'][0, 1]", "['b']"]


@pytest.mark.slow
def test_stopped_and_resumed_it_exports_the_same(whole, tmp_path):
    discover.meta_train(replace(SMALL, generations=2), tmp_path / "run", quiet=True)
    again = discover.meta_train(SMALL, tmp_path / "run", quiet=True)
    jax.tree.map(np.testing.assert_array_equal, again.objective, whole.objective)
    assert crash.logged(again.out) == crash.logged(whole.out)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_the_number_of_devices_changes_nothing(whole, tmp_path, devices):
    result = discover.meta_train(SMALL, tmp_path / "run", quiet=True, devices=jax.devices()[:devices])
    assert crash.logged(result.out) == crash.logged(whole.out)  # on four
    jax.tree.map(np.testing.assert_array_equal, result.objective, whole.objective)


@pytest.mark.slow
def test_killed_and_resumed_on_another_number_of_devices_it_exports_the_same_bytes(tmp_path, monkeypatch):
    kept = ("envs", "total_steps", "evaluate_every", "evaluation_seeds", "seed", "search.chunk")
    kept += tuple(name for name in crash.TINY if name.startswith(("agent.", "checkpoint", "generations", "objective.")))
    tiny = {name: crash.TINY[name] for name in kept} | {"search": "pbt", "search.population": 4, "search.interval": 3}
    monkeypatch.setattr(crash, "TINY", tiny)
    crash.finish(tmp_path / "calm", devices=1)
    moments = (crash.Moment(2, False, 0.02), crash.Moment(7, True, 0.0))
    assert [crash.kill(tmp_path / "killed", moment, devices=2) for moment in moments] == [True] * 2
    crash.finish(tmp_path / "killed", devices=2)
    assert crash.exported(tmp_path / "killed") == crash.exported(tmp_path / "calm")
    assert crash.logged(tmp_path / "killed") == crash.logged(tmp_path / "calm")


def test_a_step_compiles_nothing_that_another_compiled():
    search = searching(smoothing=0.0)
    state = search.init()
    for generation in range(4):  # two lives
        state, _ = search.step(state, generation)
    with crash.Compilations() as compilations:
        for generation in range(4, 8):
            state, _ = search.step(state, generation)
    assert compilations.count == 0


@pytest.mark.slow
def test_a_dry_run_and_a_card_know_it(whole):
    lines = [*dry_run(SMALL)]
    assert any(line.startswith("chunk        2 members at a time") for line in lines)
    assert "by population-based training" in lo.card(whole.out / "objective.safetensors")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"population": 1}, "population must be at least 2, because members copy one another, and is 1"),
        ({"interval": 0}, "interval must be at least 1 update, and is 0"),
        ({"share": 0.6}, r"share must be in \[0, 0.5\], and is 0.6"),
        ({"sigma": -1.0}, "sigma must be finite and not negative, and is -1.0"),
        ({"start_sigma": float("nan")}, "start_sigma must be finite and not negative, and is nan"),
        ({"perturbation": "add"}, "perturbation must be additive or multiplicative, and is 'add'"),
        ({"rate_factor": 0.8}, "rate_factor must be at least 1 and finite, and is 0.8"),
        ({"smoothing": 1.0}, r"smoothing must be in \[0, 1\), and is 1.0"),
        ({"chunk": 0}, "chunk must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(SMALL.search, **changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"longest_steps": 1024}, "needs lives of one length: give total_steps and no longest_steps"),
        ({"rate_spread": 2.0}, "give search.rate_spread, and leave out rate_spread and constant_rates"),
        ({"search": replace(SMALL.search, chunk=3)}, "chunk must divide the 8 members, and is 3"),
        ({"curriculum": cu.CurriculumConfig(kind="plr")}, "with population-based training choose 'uniform' or 'fixed'"),
        ({"objective": "program"}, "the objective 'program' is searched by 'programs'"),
    ],
)
def test_recipes_that_cannot_be_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        OuterLoop(Problem(replace(SMALL, **changes)))


def test_the_recipe_is_small():
    recipe = discover.recipes.get("pbt_small")
    assert recipe.search.kind == "pbt"
    search = OuterLoop(Problem(recipe)).search
    assert recipe.generations == search.intervals  # one life
