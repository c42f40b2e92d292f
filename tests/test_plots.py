"""Pictures show what they are given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.patches import Circle

import envs
import learned_objectives as lo
from discover import plots
from discover.agents.agent import Agent
from discover.agents.insight import insights
from discover.agents.setups import GRID
from discover.results.comparison import Comparison, Curve, Trial
from discover.searches.curriculum import CurriculumConfig, Tasks, empty

ENV, _ = envs.make("gridworld/dense")


@pytest.fixture(scope="module")
def episode():
    level = ENV.sample_level(jax.random.key(0))
    start = ENV.reset_env(jax.random.key(0), level)[1]

    def step(state, key):
        state = ENV.step_env(key, state, jnp.int32(4), level)[1]
        return state, state

    return level, jax.lax.scan(step, start, jax.random.split(jax.random.key(1), 5))[1]


def circles(figure):
    return [artist for artist in figure.axes[0].get_children() if isinstance(artist, Circle)]


def test_a_level_has_its_objects_and_its_agent(episode):
    level, _ = episode
    centres = {tuple(map(int, circle.center)) for circle in circles(plots.level_picture(ENV, level))}
    cells = [*np.asarray(level.cell), int(level.start)]
    assert centres == {(int(cell) % 11, int(cell) // 11) for cell in cells}


def test_an_animation_has_a_frame_for_each_state(episode):
    level, states = episode
    assert plots.level_animation(ENV, level, states).to_jshtml().count("frames[") >= 5


@pytest.mark.parametrize("time_aware", [False, True])
def test_credit_is_the_difference_that_a_reward_makes(time_aware):
    lpg = lo.LPG.groove(jax.random.key(0), hidden=16, time_aware=time_aware)
    figure = plots.credit(lpg, steps=6)
    lines = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 6]
    assert len(lines) == (3 if time_aware else 1)
    assert all(np.abs(line.get_ydata()).max() > 0 for line in lines)


def test_each_kind_of_objective_is_looked_into():
    assert list(plots.look_inside(lo.load("dpo"))) == ["drift.png"]
    assert list(plots.look_inside(lo.LPG.groove(jax.random.key(0), hidden=4))) == ["credit.png"]


@pytest.mark.slow
def test_targets_stand_beside_the_truth():
    env, level = envs.make("gridworld/small")[0], envs.levels.sample(jax.random.key(1), "small")
    found = insights(lo.load("lpg"), env, level, num_updates=20, fractions=(1.0, 0.0, 0.01))
    assert [each.fraction for each in found] == [1.0, 0.0, 0.0]
    assert found[0].ret > found[1].ret
    figure = plots.targets(found)
    for column, each in enumerate(found):
        dots = figure.axes[column].collections[0].get_offsets()
        np.testing.assert_allclose(dots, np.stack([each.advantage, each.policy_target], 1))
    with pytest.raises(ValueError, match="observation='index', whose objects keep their cells"):
        insights(lo.load("lpg"), envs.make("gridworld/small", observation="planes")[0], level)
    with pytest.raises(ValueError, match="whose objects keep their cells"):
        insights(lo.load("lpg"), env, level.replace(shuffled=jnp.bool_(True)))
    with pytest.raises(ValueError, match=r"fractions must be some in \[0, 1\], and are \(2.0,\)"):
        insights(lo.load("lpg"), env, level, fractions=(2.0,))


@pytest.mark.slow
def test_favourites_are_what_is_replayed_most():
    config = CurriculumConfig(kind="plr", size=4, staleness=0.0)
    agent = Agent.fit(ENV, GRID.agent, lo.load("lpg"))
    buffer = empty(config, Tasks(agent, None, 40.0, None, 0))
    with pytest.raises(ValueError, match="the buffer is empty"):
        plots.favourites(ENV, config, buffer)
    with pytest.raises(ValueError, match="these tasks are of CartPole-v1"):
        plots.favourites(envs.make("CartPole-v1")[0], config, buffer)
    level = jax.vmap(ENV.sample_level)(jax.random.split(jax.random.key(0), 4))
    task = buffer.task.replace(env_params=level)
    scores = jnp.array([0.3, 0.9, 0.1, 0.5])
    figure = plots.favourites(ENV, config, buffer.replace(task=task, score=scores, number=jnp.arange(1, 5)), count=2)
    shown = [axis.get_title().split("\n")[0] for axis in figure.axes]
    assert shown == ["score 0.9", "score 0.5", "score 0.3", "score 0.1"]


def test_a_dollar_in_a_name_is_a_dollar():
    curve = Curve(np.ones((2, 3)), np.arange(3))
    figure = plots.learning_curves({"a $x$": curve, "$": curve}, title="$5")
    figure.draw_without_rendering()
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [r"a \$x\$", r"\$"]


def test_a_figure_says_what_its_line_and_band_are_and_its_legend_covers_no_line():
    """Ticks of a budget axis are the budgets."""
    trials = {Trial("CartPole-v1", n): n * np.ones((8, 1)) for n in (1000, 2500)}
    steps = np.array([1000])
    comparison = Comparison({t: {"ppo": Curve(returns, steps)} for t, returns in trials.items()}, {})
    figures = {
        plots.learning_curves(
            {"ppo": Curve(np.zeros((8, 1)), steps)}
        ): "line: mean\nband: ± 1 standard error\nover 8 seeds",
        plots.budgets(comparison): "line: IQM over seeds\nband: its 95% interval",
        plots.search_curve(
            [{"generation": 0, "evaluation": {"E": [1.0, 2.0]}}]
        ): "line: mean\nband: ± 1 standard error",
    }
    for figure, title in figures.items():
        figure.draw_without_rendering()
        (axis,) = figure.axes
        assert axis.get_legend().get_title().get_text() == title
        assert axis.get_legend().get_window_extent().x0 >= axis.get_window_extent().x1
    axis = plots.budgets(comparison).axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1,000", "2,500"]


def test_a_landscape_has_one_colour_scale_for_each_column():
    figure = plots.drift_landscape({"PPO": lo.Clip(), "DPO": lo.DPO()})
    for column in (0, 1):
        meshes = [figure.axes[row * 2 + column].collections[0] for row in (0, 1)]
        assert meshes[0].get_clim() == meshes[1].get_clim()
    assert len(figure.axes) == 4 + 2  # and one bar for each scale


def test_schedules_are_the_weights_of_the_objective():
    """By hand: an entropy weight of 0.01 e^(1 - 2 n/N) in all lives, and a lambda that depends on log10 N alone."""
    numbers = jnp.zeros((3, 4)).at[0, 0].set(1.0).at[1, 0].set(-2.0).at[2, 2].set(1.0)
    objective = lo.ScheduledMirror.create(lo.Clip(), time_aware=True).replace(numbers=numbers, value_clip=0.2)
    figure = plots.schedules(objective, lifetimes=(100_000, 1_000_000))
    titles = {axis.get_title(): axis for axis in figure.axes}
    assert list(titles) == ["entropy weight", "value weight", "lambda", "value clip"]
    x, y = titles["entropy weight"].lines[0].get_data()
    np.testing.assert_allclose(y, 0.01 * np.exp(1 - 2 * np.asarray(x)), atol=1e-5)
    for line, lifetime in zip(titles["lambda"].lines, (1e5, 1e6), strict=False):
        np.testing.assert_allclose(line.get_ydata(), 1 - 0.05 * np.exp(np.log10(lifetime) - 5.5), atol=1e-5)
    assert set(plots.look_inside(objective)) == {"drift.png", "schedules.png"}
