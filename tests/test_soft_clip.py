"""The clip of few numbers: it begins as PPO, and each number does what its name says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import discover
import envs
import learned_objectives as lo
from discover import recipes
from discover.agents.agent import Agent
from discover.agents.distributions import Categorical, Gaussian, MultiCategorical
from discover.searches.evolution import EvolutionConfig
from discover.searches.families import SoftClipConfig
from discover.searches.family_of import objective_config
from learned_objectives.soft_clip import NUMBERS, SIGNS, hinge


def with_numbers(**changes):
    """A SoftClip with some numbers changed: positive_width=0.1, negative_slope=1.0, ..."""
    numbers = np.zeros((1, 2, 6), np.float32)
    for name, value in changes.items():
        sign, _, number = name.partition("_")
        numbers[0, SIGNS.index(sign), NUMBERS.index(number)] = value
    return lo.SoftClip(jnp.asarray(numbers))


def test_it_begins_as_the_clip_of_ppo(samples):
    log_ratio, advantage = samples
    clip, soft = lo.Clip(0.2), lo.SoftClip.create()
    np.testing.assert_allclose(soft(log_ratio, advantage), clip(log_ratio, advantage), rtol=1e-5, atol=1e-6)
    slope = lambda drift: jax.grad(lambda x: drift.surrogate(x, advantage).sum())(log_ratio)
    np.testing.assert_allclose(slope(soft), slope(clip), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("u", "width", "softness", "expected"),
    [
        (0.3, 0.2, 0.0, 0.1),
        (0.1, 0.2, 0.0, 0.0),
        (0.2, 0.2, 0.5, 0.1**2 / 0.4),  # (u - 0.1)^2 / (4 * 0.1)
        (0.4, 0.2, 0.5, 0.2),
        (0.0, 0.2, 1.0, 0.0),
        (0.4, 0.2, 1.0, 0.2),  # where the parabola u^2 / 0.8 meets the line u - 0.2
    ],
)
def test_the_hinge_by_hand(u, width, softness, expected):
    found = hinge(jnp.float32(u), jnp.float32(width), jnp.float32(softness))
    assert float(found) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "ratio", "advantage", "expected"),
    [
        ({"positive_width": np.log(2.0)}, 1.5, 2.0, 2.0 * 0.1),  # width 0.4
        ({"positive_width": np.log(2.0)}, 0.5, -2.0, 2.0 * 0.3),  # the other sign keeps 0.2
        ({"negative_slope": 1.0}, 0.5, -2.0, 2.0 * 2.0 * 0.3),
        ({"negative_slope": -1.0}, 0.5, -2.0, 0.0),  # slope 0: no drift
        ({"positive_reach": 1.0}, 1.5, 2.0, 2.0 * 0.1),  # width 0.2 * 2
        ({"positive_back_slope": 0.5}, 0.4, 2.0, 2.0 * 0.5 * 0.4),  # against the step: 0.6, beyond 2 * 0.2
        ({"negative_back_slope": -0.5}, 1.6, -2.0, 2.0 * 0.5 * 0.4),
    ],
)
def test_each_number_by_hand(changes, ratio, advantage, expected):
    drift = with_numbers(**changes)
    assert float(drift(jnp.log(jnp.float32(ratio)), jnp.float32(advantage))) == pytest.approx(
        expected, rel=1e-5, abs=1e-6
    )


def test_numbers_depend_on_time_as_the_rows_say():
    drift = lo.SoftClip.create(time_aware=True)
    drift = drift.replace(numbers=drift.numbers.at[:, 0, 1].set(jnp.array([0.5, 1.0, 2.0])))
    at = drift.at(lo.Progress(jnp.float32(0.25e6), jnp.float32(1e6)))  # n/N = 0.25, log10 N - 5.5 = 0.5
    np.testing.assert_allclose(at[0, 1], 0.5 + 0.25 + 1.0, rtol=1e-5)
    assert not np.delete(np.asarray(at).ravel(), 1).any()


def test_numbers_depend_on_statistics_as_the_rows_say():
    drift = lo.SoftClip.create(sees_statistics=True)
    drift = drift.replace(numbers=drift.numbers.at[:, 1, 0].set(jnp.array([0.5, 1.0, 2.0, 3.0, 4.0])))
    statistics = lo.Statistics(*map(jnp.float32, (0.02, 0.25, -0.5, 0.3)))
    at = drift.at(lo.Progress(jnp.float32(0.0), jnp.float32(1e6), statistics))
    # 0.5 + 2 * 1 + 0.25 * 2 - 0.5 * 3 + 3 * 4; and an input is at most 5.
    np.testing.assert_allclose(at[1, 0], 0.5 + 2.0 + 0.5 - 1.5 + 12.0, rtol=1e-5)
    far = drift.at(lo.Progress(0.0, 1e6, statistics.replace(kl=jnp.float32(1.0), clipped=jnp.float32(1.0))))
    np.testing.assert_allclose(far[1, 0], 0.5 + 5.0 + 0.5 - 1.5 + 20.0, rtol=1e-5)


CONFIG = discover.AgentConfig(num_envs=8, num_steps=16, num_minibatches=2, hidden=(8,), learning_rate=1e-2)


def one_update(objective):
    env, params = envs.make("CartPole-v1")
    agent = Agent.fit(env, CONFIG, objective)
    task = agent.task(params, 10 * 128)
    state = agent.init(task, jax.random.key(0))
    return agent, *jax.jit(agent.step)(objective, task, state)


def test_statistics_of_an_update_are_those_of_numpy():
    objective = lo.Mirror(drift=lo.SoftClip.create(sees_statistics=True))
    agent, state, rollout, _ = one_update(objective)
    logits = np.asarray(agent.networks.actor(state.params, rollout.obs).logits, np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_probs, np.asarray(rollout.action)[..., None], -1)[..., 0]
    log_ratio = chosen - np.asarray(rollout.log_prob, np.float64)
    value, following = (np.asarray(x, np.float64)[..., 0] for x in (rollout.critic, rollout.next_critic))
    end = np.asarray(rollout.terminated | rollout.truncated)
    advantage = np.zeros_like(value)
    for t in reversed(range(len(value))):
        later = advantage[t + 1] if t + 1 < len(value) else 0.0
        delta = np.asarray(rollout.reward)[t] + 0.99 * following[t] - value[t]
        advantage[t] = delta + 0.99 * 0.95 * ~end[t] * later
    found = state.statistics
    np.testing.assert_allclose(found.kl, (np.exp(log_ratio) - 1 - log_ratio).mean(), rtol=1e-2)
    np.testing.assert_allclose(found.entropy, -(np.exp(log_probs) * log_probs).sum(-1).mean() / np.log(2), rtol=1e-4)
    np.testing.assert_allclose(
        found.explained_variance, 1 - advantage.var() / (advantage + value).var(), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(found.clipped, (np.abs(np.exp(log_ratio) - 1) > 0.2).mean(), atol=1e-2)


def test_entropy_is_relative_to_the_largest():
    assert float(Categorical(jnp.zeros(5)).relative_entropy()) == pytest.approx(1.0)
    assert float(Categorical(jnp.log(jnp.array([0.9, 0.1]))).relative_entropy()) == pytest.approx(
        0.46900, abs=1e-4
    )  # bits
    assert float(MultiCategorical(jnp.zeros(5), (2, 3)).relative_entropy()) == pytest.approx(1.0)
    assert float(Gaussian(jnp.zeros(2), jnp.log(jnp.array([0.5, 0.125]))).relative_entropy()) == pytest.approx(0.25)
    assert float(Gaussian(jnp.zeros(2), jnp.ones(2)).relative_entropy()) == 1.0


def test_an_agent_computes_statistics_only_if_asked():
    clip = lo.Mirror(drift=lo.SoftClip.create())
    agent, state, *_ = one_update(clip)
    assert not agent.statistics
    assert state.statistics is None
    _, other, *_ = one_update(lo.Mirror(drift=lo.SoftClip.create(sees_statistics=True)))  # on which nothing depends yet
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.params, other.params)


@pytest.mark.slow
def test_a_search_with_statistics_and_lives_of_many_lengths(tmp_path):
    recipe = recipes.replace(
        recipes.quickstart(),
        objective=SoftClipConfig(time_aware=True, sees_statistics=True),
        search=EvolutionConfig(strategy="CMA_ES", population=4, sigma=0.3),
        envs=("probe/observation_action",),
        total_steps=256,
        longest_steps=1024,
        agent=CONFIG,
        generations=2,
        evaluate_every=2,
        evaluation_seeds=2,
    )
    result = discover.meta_train(recipe, tmp_path / "run", quiet=True)
    assert result.objective.drift.numbers.shape == (7, 2, 6)
    assert lo.load(tmp_path / "run" / "objective.safetensors").drift.sees_statistics


def test_without_statistics_it_is_refused(samples, progress):
    with pytest.raises(
        ValueError, match=r"^a SoftClip that sees statistics reads statistics of the agent's last update"
    ):
        lo.SoftClip.create(sees_statistics=True)(*samples, progress.replace(statistics=None))


@pytest.mark.parametrize(
    "more", [{"time_aware": True}, {"sees_statistics": True}, {"time_aware": True, "sees_statistics": True}]
)
def test_more_inputs_change_nothing(samples, progress, more):
    drift = with_numbers(positive_width=0.3, negative_slope=-0.4, positive_softness=0.7)
    progress = progress.replace(statistics=lo.Statistics.typical())
    extended = drift.extended(**more)
    np.testing.assert_allclose(extended(*samples, progress), drift(*samples), rtol=1e-6)
    again = extended.extended(time_aware=True, sees_statistics=True)
    np.testing.assert_allclose(again(*samples, progress), drift(*samples), rtol=1e-6)


def test_it_takes_numbers():
    soft, clip = lo.Mirror(drift=lo.SoftClip.create()), lo.Mirror()
    assert float(soft.surrogate(0.3, 1.0)) == pytest.approx(float(clip.surrogate(0.3, 1.0)), rel=1e-6)


def test_the_table_shows_what_is_computed():
    far = with_numbers(positive_width=10.0)
    assert far.table()["positive"]["width"] == pytest.approx(0.2 * np.exp(4.0), abs=1e-3)
    assert float(far(jnp.log(20.0), jnp.float32(1.0))) == pytest.approx(19.0 - 0.2 * np.exp(4.0), rel=1e-4)


def test_the_table_names_what_a_reader_wants():
    table = with_numbers(positive_width=np.log(1.5), negative_slope=0.25, negative_back_slope=-0.1).table()
    assert table["positive"]["width"] == pytest.approx(0.3, abs=1e-3)
    assert table["negative"] == {
        "width": 0.2, "slope": 1.25, "softness": 0.0, "reach": 0.0, "back_width": 0.2, "back_slope": 0.1,
    }  # fmt: skip


def test_a_file_keeps_it(tmp_path):
    drift = with_numbers(positive_width=0.3)
    lo.save(lo.Mirror(drift=drift), tmp_path / "soft.safetensors")
    np.testing.assert_array_equal(lo.load(tmp_path / "soft.safetensors").drift.numbers, drift.numbers)


def test_a_search_starts_from_it(tmp_path):
    drift = with_numbers(positive_width=0.3)
    lo.save(lo.Mirror(drift=drift), tmp_path / "soft.safetensors")
    recipe = recipes.replace(recipes.quickstart(), objective="soft_clip")
    assert jax.tree.leaves(recipe.template())[0].shape == (1, 2, 6)
    start = SoftClipConfig(time_aware=True, start=str(tmp_path / "soft.safetensors"))
    found = recipes.replace(recipe, objective=start).template().drift
    np.testing.assert_array_equal(found.numbers, drift.extended(time_aware=True).numbers)
    assert objective_config("ta_soft_clip", recipe.objective) == SoftClipConfig(time_aware=True)
    with pytest.raises(ValueError, match="dpo holds something else"):
        recipes.replace(recipe, objective=SoftClipConfig(start="dpo")).template()


def test_formulas_say_what_the_numbers_are():
    numbers = jnp.zeros((3, 2, 6)).at[:, 0, 0].set(jnp.array([0.31, 0.29, -0.22])).at[0, 1, 1].set(-0.5)
    drift = lo.SoftClip.create(time_aware=True).replace(numbers=numbers)
    weights = jnp.zeros((3, 4)).at[1, 2].set(0.64)
    objective = lo.ScheduledMirror.create(drift, time_aware=True).replace(numbers=weights)
    assert objective.formulas() == {
        "width, A > 0": "0.2 exp(0.31 + 0.29 n/N - 0.22 (log10 N - 5.5))",
        "slope, A < 0": "|1 + (-0.50)|",
        "1 - lambda": "0.05 exp(0.64 n/N)",
    }
    assert lo.ScheduledMirror.create(lo.SoftClip.create()).formulas() == {}
