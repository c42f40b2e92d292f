"""MAP-Elites: the archive beside one in NumPy, a toy with a known best of every cell, behaviour, resumed runs, and devices."""

import math
from dataclasses import replace

import crash
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import discover
import learned_objectives as lo
from discover import AgentConfig, MapElitesConfig, Recipe, plots
from discover.runs.dry_run import dry_run
from discover.runs.loop import last_state
from discover.searches import curriculum as cu
from discover.searches import map_elites as me
from discover.searches.behaviour import DESCRIPTORS, Behaviour, Descriptor, live_watched, watched
from discover.searches.map_elites_search import MapElitesSearch
from discover.searches.outer_loop import OuterLoop
from discover.searches.problem import Problem, life_fitness
from learned_objectives import Statistics

SMALL = Recipe(
    objective=lo.AsymmetricClip(jnp.float32(0.1), jnp.float32(-0.2)),
    envs=("CartPole-v1",),
    total_steps=8 * 32,
    generations=4,
    evaluate_every=2,
    evaluation_seeds=2,
    checkpoint_every=1,
    agent=AgentConfig(num_envs=2, num_steps=16, num_minibatches=2, num_epochs=2, hidden=(8,)),
    search=MapElitesConfig(population=6, chunk=2, lives=2, grid=(4, 3), bounds=(-4.0, -1.0, 0.9, 1.0)),
)
LOW, HIGH, GRID = np.array([-1.0, 0.0]), np.array([1.0, 2.0]), (5, 4)


def searching(**changes):
    recipe = replace(SMALL, search=replace(SMALL.search, **changes))
    return MapElitesSearch(recipe.search, Problem(recipe))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return discover.meta_train(SMALL, tmp_path_factory.mktemp("whole") / "run", quiet=True)


def inserted_by_hand(cells, found, places):
    """{cell: (score, first leaf)} after candidates one after another, in NumPy."""
    cells = dict(cells)
    for score, descriptors, leaf, place in zip(found.score, found.descriptors, found.objectives, places, strict=True):
        allowed = np.isfinite(score) and np.isfinite(descriptors).all()
        if allowed and (place not in cells or score > cells[place][0]):
            cells[place] = (float(score), float(leaf[0]))
    return cells


def test_the_archive_is_that_of_a_loop_over_candidates():
    rng = np.random.default_rng(0)
    archive, expected = me.empty(jnp.zeros(3), cells=20, environments=1, descriptors=2), {}
    insert = jax.jit(me.inserted)
    for generation in range(12):
        score = rng.integers(0, 6, 16).astype(np.float32)  # so that scores are often equal
        score[rng.random(16) < 0.1] = -np.inf
        descriptors = rng.uniform(-1.5, 2.5, (16, 2)).astype(np.float32)
        descriptors[rng.random((16, 2)) < 0.05] = np.nan
        found = me.Candidates(rng.normal(size=(16, 3)).astype(np.float32), score, score[:, None], descriptors)
        cells = np.asarray(me.cell_of(descriptors, low=LOW, high=HIGH, grid=GRID))
        place = np.clip(np.floor((descriptors - LOW) / (HIGH - LOW) * GRID), 0, np.array(GRID) - 1)
        known = np.isfinite(descriptors).all(1)
        np.testing.assert_array_equal(cells[known], (place @ [GRID[1], 1])[known])
        archive = insert(archive, found, cells=cells, generation=generation)
        expected = inserted_by_hand(expected, found, cells.tolist())
    filled = np.flatnonzero(np.asarray(archive.filled))
    assert {*filled.tolist()} == {*expected}
    for cell in filled:
        assert (float(archive.score[cell]), float(archive.objectives[cell, 0])) == expected[int(cell)]
    empty = ~np.asarray(archive.filled)
    assert np.isneginf(archive.score[empty]).all()
    assert np.isnan(archive.descriptors[empty]).all()


def test_descriptors_outside_of_the_range_belong_to_the_outermost_cells():
    points = jnp.array([[-np.inf, 0.0], [-1.0, -5.0], [0.99, 1.99], [1.0, 2.0], [np.inf, 9.0], [0.0, 1.0]])
    np.testing.assert_array_equal(me.cell_of(points, low=LOW, high=HIGH, grid=GRID), [0, 0, 19, 19, 19, 10])
    np.testing.assert_array_equal(me.cell_of(points[:, :1], low=LOW[:1], high=HIGH[:1], grid=(2,)), [0, 0, 1, 1, 1, 1])


def archive_of(points):
    archive = me.empty(jnp.zeros(2), cells=6, environments=1, descriptors=1)
    found = me.Candidates(points, jnp.ones(len(points)), jnp.ones((len(points), 1)), jnp.zeros((len(points), 1)))
    return me.inserted(archive, found, cells=jnp.array([1, 4, 5])[: len(points)], generation=0)


def test_children_lie_around_the_line_between_two_elites():
    """By hand: the mean and the covariance of children of three elites, of which each pair is as likely."""
    points = jnp.array([[0.0, 0.0], [3.0, 0.0], [0.0, 6.0]])
    sizes = {"count": 40_000, "start": 1.0, "iso": 0.5, "line": 0.3}
    children = np.asarray(me.varied(jax.random.key(0), archive_of(points), template=jnp.zeros(2), **sizes), np.float64)
    p = np.asarray(points, np.float64)
    difference = (p[:, None] - p[None]).reshape(-1, 2)
    expected = np.cov(p.T, bias=True) + 0.5**2 * np.eye(2) + 0.3**2 * difference.T @ difference / 9
    np.testing.assert_allclose(children.mean(0), p.mean(0), atol=0.05)
    np.testing.assert_allclose(np.cov(children.T), expected, rtol=0.04, atol=0.04)
    one = me.varied(jax.random.key(0), archive_of(points[1:2]), template=jnp.zeros(2), **sizes | {"iso": 0.0})
    np.testing.assert_array_equal(one, np.broadcast_to(points[1], one.shape))  # a line of one elite is a point


def test_children_of_an_empty_archive_are_the_start_and_perturbations_of_it():
    archive = me.empty(jnp.full(2, 7.0), cells=6, environments=1, descriptors=1)
    sizes = {"count": 20_000, "start": 2.0, "iso": 0.1, "line": 0.1}
    children = np.asarray(me.varied(jax.random.key(1), archive, template=jnp.full(2, 7.0), **sizes), np.float64)
    np.testing.assert_array_equal(children[0], 7.0)
    np.testing.assert_allclose((children.mean(), children[1:].std()), (7.0, 2.0), rtol=0.02)


def test_on_a_toy_every_cell_reaches_its_known_best():
    """Two leaves are the descriptors, and the return is minus the squared distance to a point: the best of a cell is the point of
    it that is nearest."""
    peak, grid = np.array([0.3, -0.6]), (6, 5)
    search = searching(population=256, grid=grid, bounds=(-1.0, 1.0, -1.0, 1.0), iso_sigma=0.05)

    def lived(candidates, generation):
        leaves = jnp.stack([candidates.drift.positive, candidates.drift.negative], axis=-1)
        return -((leaves - peak) ** 2).sum(-1)[:, None], leaves[:, None]

    search._lived = lived
    state = search.init()
    for generation in range(150):
        state, _ = search.step(state, generation)
    archive = state.archive
    assert bool(archive.filled.all())
    start = float(-((np.array([0.1, -0.2]) - peak) ** 2).sum())
    np.testing.assert_allclose(state.reference, start, rtol=1e-6)
    edges = [np.linspace(-1, 1, n + 1) for n in grid]
    for cell, (i, j) in enumerate(np.ndindex(grid)):
        inside = [(edges[0][i], edges[0][i + 1]), (edges[1][j], edges[1][j + 1])]
        # Points beyond the outermost cells belong to them.
        low = [-np.inf if k == 0 else a for k, (a, _) in zip((i, j), inside, strict=True)]
        high = [np.inf if k == n - 1 else b for k, n, (_, b) in zip((i, j), grid, inside, strict=True)]
        best = -((np.clip(peak, low, high) - peak) ** 2).sum()
        assert float(archive.returns[cell, 0]) <= best + 1e-6
        assert float(archive.returns[cell, 0]) > best - 0.05
        leaves = [float(x[cell]) for x in jax.tree.leaves(archive.objectives)]
        np.testing.assert_allclose(-((np.array(leaves) - peak) ** 2).sum(), archive.returns[cell, 0], atol=1e-5)
    np.testing.assert_allclose(archive.score, archive.returns[:, 0] - start, atol=1e-5)  # the start's return is below 1
    top = search.mean(state).drift
    np.testing.assert_allclose([top.positive, top.negative], peak, atol=0.1)
    held = search.elite(state, (5, 0)).drift
    assert float(held.positive) >= edges[0][5]
    assert float(held.negative) < edges[1][1]


def test_behaviour_is_the_mean_of_the_statistics_of_all_updates():
    """Beside a loop over updates, of lives that end before the longest one does. The fitness is the usual one."""
    recipe = replace(SMALL, longest_steps=16 * 32)
    problem = Problem(recipe)
    usual, objective = problem.settings[0], problem.template
    setting = watched(usual)
    task, key = setting.tasks(jax.random.key(3)), jax.random.key(4)
    fitness, seen = jax.jit(lambda t, k: live_watched(setting, objective, t, k))(task, key)
    plain = jax.jit(lambda t, k: life_fitness(usual, objective, t, k))(task, key)
    np.testing.assert_allclose(fitness, plain, rtol=1e-6)
    count = round(float(task.lifetime) / 32)
    assert 8 <= count < 16
    state, kl, clipped = setting.agent.init(task, key), [], []
    update = jax.jit(lambda state: setting.agent.update(objective, task, state)[0])
    for _ in range(count):
        state = update(state)
        kl.append(float(state.statistics.kl))
        clipped.append(float(state.statistics.clipped))
    np.testing.assert_allclose(seen.mean.kl, np.mean(kl), rtol=1e-3)
    np.testing.assert_allclose(seen.mean.clipped, np.mean(clipped), atol=1e-6)
    np.testing.assert_allclose(seen.last.entropy, state.statistics.entropy, rtol=1e-5)


def test_descriptors_by_hand():
    mean = Statistics(*map(jnp.float32, (0.01, 0.4, 0.3, 0.2)))
    seen = Behaviour(mean, Statistics(*map(jnp.float32, (0.5, 0.6, 0.7, 0.8))))
    values = {name: float(DESCRIPTORS[name].of(seen)) for name in DESCRIPTORS}
    assert values == pytest.approx({"log_kl": -2.0, "entropy": 0.6, "clipped": 0.2, "explained_variance": 0.3})


def test_scores_are_gains_over_the_start_in_units_of_it():
    recipe = replace(SMALL, envs=("CartPole-v1", "Acrobot-v1"), search=replace(SMALL.search, population=3))
    search = MapElitesSearch(recipe.search, Problem(recipe))
    returns = [[[20.0, -100.0], [30.0, -100.0], [jnp.nan, 0.0]], [[10.0, -50.0], [40.0, -100.0], [20.0, -100.0]]]
    descriptors = jnp.array([[-3.9, 0.91], [-2.0, 0.95], [-1.1, 0.99]])
    search._lived = lambda candidates, g: (jnp.array(returns[g]), jnp.stack([descriptors, descriptors], axis=1))
    state = search.init()
    after, row = search.step(state, 0)
    np.testing.assert_array_equal(after.reference, [20.0, -100.0])
    found = np.asarray(after.archive.score)[np.asarray(after.archive.filled)]
    np.testing.assert_allclose(found, [0.0, (10 / 20) / 2], atol=1e-6)
    assert row["new_elites"] == 2
    assert row["diverged"] == pytest.approx(1 / 3)
    assert search.describe(after, 1)["filled"] == 2
    after, row = search.step(after, 1)
    np.testing.assert_array_equal(after.reference, [20.0, -100.0])
    found = np.asarray(after.archive.score)[np.asarray(after.archive.filled)]
    np.testing.assert_allclose(found, [0.0, (20 / 20) / 2, 0.0], atol=1e-6)  # (-10 / 20 + 50 / 100) / 2 is not higher
    assert row["new_elites"] == 2


def test_a_run_fills_cells_and_exports_an_elite(whole):
    search, state = last_state(whole.out)
    archive = state.search.archive
    filled, (low, high) = np.asarray(archive.filled), map(jnp.array, SMALL.search.ranges)
    assert 1 <= filled.sum() == whole.rows[-1]["filled"]
    np.testing.assert_array_equal(
        np.flatnonzero(filled),
        np.unique(me.cell_of(archive.descriptors[filled], low=low, high=high, grid=SMALL.search.grid)),
    )
    best = int(np.argmax(archive.score))
    mean = search.mean(state)
    assert float(mean.drift.positive) == float(archive.objectives.drift.positive[best])
    assert whole.rows[-1]["best_elite"] == pytest.approx(float(archive.score[best]), rel=1e-3)
    assert int(state.updates) == 4 * 6 * 2 * 8 + 3 * 2 * 8
    place = np.unravel_index(best, SMALL.search.grid)
    jax.tree.map(np.testing.assert_array_equal, search.search.elite(state.search, place), mean)
    assert "by MAP-Elites" in lo.card(whole.out / "objective.safetensors")


def test_a_cell_that_is_empty_or_outside_of_the_grid_is_refused():
    search = searching()
    state = search.init()
    with pytest.raises(ValueError, match=r"the cell \(0, 1\) is empty: no candidate behaved so"):
        search.elite(state, (0, 1))
    for place in ((0,), (4, 0), (0, -1)):
        with pytest.raises(ValueError, match=r"a place in the grid \(4, 3\) has a number from 0 for each descriptor"):
            search.elite(state, place)
    assert float(search.mean(state).drift.positive) == np.float32(0.1)
    with pytest.raises(ValueError, match="the archive is empty: no generation has been trained"):
        plots.elites(state.archive, search.config)


def test_the_picture_has_each_elite_in_its_cell():
    config = MapElitesConfig(grid=(3, 2), bounds=(0.0, 3.0, 0.0, 2.0))
    archive = me.empty(jnp.zeros(1), cells=6, environments=1, descriptors=2)
    points = jnp.array([[0.5, 0.5], [2.5, 1.5]])
    found = me.Candidates(jnp.zeros((2, 1)), jnp.array([1.0, 2.0]), jnp.array([[5.0], [9.0]]), points)
    cells = me.cell_of(points, low=jnp.zeros(2), high=jnp.array([3.0, 2.0]), grid=(3, 2))
    archive = me.inserted(archive, found, cells=cells, generation=0)
    figure = plots.elites(archive, config, names=("$E",))
    score, returned = (axis for axis in figure.axes if axis.images)
    nan = np.nan
    np.testing.assert_array_equal(score.images[0].get_array().filled(nan), [[1.0, nan, nan], [nan, nan, 2.0]])
    np.testing.assert_array_equal(returned.images[0].get_array().filled(nan), [[5.0, nan, nan], [nan, nan, 9.0]])
    np.testing.assert_array_equal(score.lines[0].get_data(), [[2.5], [1.5]])
    for grid, bounds in (((6,), (0.0, 1.0)), ((1, 2, 3), (0.0, 1.0) * 3)):
        names = ("log_kl", "entropy", "clipped")[: len(grid)]
        plots.elites(archive, MapElitesConfig(descriptors=names, grid=grid, bounds=bounds)).draw_without_rendering()


@pytest.mark.slow
def test_stopped_and_resumed_it_exports_the_same(whole, tmp_path):
    discover.meta_train(replace(SMALL, generations=2), tmp_path / "run", quiet=True)
    again = discover.meta_train(SMALL, tmp_path / "run", quiet=True)
    jax.tree.map(np.testing.assert_array_equal, again.objective, whole.objective)
    assert crash.logged(again.out) == crash.logged(whole.out)
    archives = [last_state(out)[1].search for out in (again.out, whole.out)]
    jax.tree.map(np.testing.assert_array_equal, *archives)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_the_number_of_devices_changes_nothing(whole, tmp_path, devices):
    result = discover.meta_train(SMALL, tmp_path / "run", quiet=True, devices=jax.devices()[:devices])
    assert crash.logged(result.out) == crash.logged(whole.out)  # on four
    jax.tree.map(np.testing.assert_array_equal, result.objective, whole.objective)


@pytest.mark.slow
def test_killed_and_resumed_on_another_number_of_devices_it_exports_the_same_bytes(tmp_path, monkeypatch):
    kept = {name: value for name, value in crash.TINY.items() if not name.startswith("search.")}
    of_search = {"search": "map_elites", "search.population": 4, "search.chunk": 1, "search.start_sigma": 1.0}
    monkeypatch.setattr(crash, "TINY", kept | of_search)
    crash.finish(tmp_path / "calm", devices=1)
    moments = (crash.Moment(2, False, 0.02), crash.Moment(7, True, 0.0))
    assert [crash.kill(tmp_path / "killed", moment, devices=2) for moment in moments] == [True] * 2
    crash.finish(tmp_path / "killed", devices=2)
    assert crash.exported(tmp_path / "killed") == crash.exported(tmp_path / "calm")
    assert crash.logged(tmp_path / "killed") == crash.logged(tmp_path / "calm")


@pytest.mark.slow
def test_a_dry_run_and_a_figure_of_a_run(whole, tmp_path):
    assert any(line.startswith("chunk        2 candidates at a time") for line in dry_run(SMALL))
    assert {path.name for path in plots.draw_run(whole.out, tmp_path)} == {"search.png", "drift.png", "elites.png"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"population": 0}, "population must be at least 1, and is 0"),
        ({"lives": 0}, "lives must be at least 1, and is 0"),
        ({"descriptors": ()}, r"descriptors must name at least one, and each once, and are \(\)"),
        ({"descriptors": ("entropy", "entropy")}, "descriptors must name at least one, and each once"),
        ({"descriptors": ("entropy", "log_kll")}, "Unknown descriptor 'log_kll'; did you mean 'log_kl'"),
        ({"grid": (4,)}, r"at least 1 for each of the 2 descriptors, and is \(4,\)"),
        ({"grid": (4, 0)}, r"at least 1 for each of the 2 descriptors, and is \(4, 0\)"),
        ({"bounds": (0.0, 1.0)}, r"bounds must be empty, or a low and a higher number for each of the 2 descriptors"),
        ({"bounds": (0.0, 1.0, 1.0, 1.0)}, "a low and a higher number for each of the 2 descriptors"),
        ({"bounds": (0.0, math.inf, 0.0, 1.0)}, "a low and a higher number for each of the 2 descriptors"),
        ({"iso_sigma": -0.1}, "iso_sigma must be finite and not negative, and is -0.1"),
        ({"chunk": "all"}, "chunk must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(SMALL.search, **changes)


PAIR = Descriptor(lambda seen: jnp.stack([seen.mean.kl, seen.mean.kl]), 0.0, 1.0, "a pair")
MEAN_ENTROPY = Descriptor(lambda seen: seen.mean.entropy, 0.0, 1.0, "mean entropy")


def test_a_descriptor_of_a_user_is_named_by_its_path():
    search = searching(descriptors=("tests.test_map_elites:MEAN_ENTROPY",), grid=(3,), bounds=())
    assert search.config.ranges == ((0.0,), (1.0,))
    with pytest.raises(
        ValueError, match=r"the descriptor tests.test_map_elites:PAIR must return float32\[\], and returns"
    ):
        searching(descriptors=("tests.test_map_elites:PAIR",), grid=(3,), bounds=())
    with pytest.raises(ValueError, match="must be a Descriptor"):
        searching(descriptors=("tests.test_map_elites:math",), grid=(3,), bounds=())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"curriculum": cu.CurriculumConfig(kind="plr")}, "with MAP-Elites choose 'uniform' or 'fixed'"),
        ({"objective": "program"}, "the objective 'program' is searched by 'programs'"),
    ],
)
def test_recipes_that_cannot_be_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        OuterLoop(Problem(replace(SMALL, **changes)))


def test_the_recipe_is_small():
    recipe = discover.recipes.get("map_elites_small")
    assert recipe.search.kind == "map_elites"
    assert OuterLoop(Problem(recipe)).search.cells == 64
