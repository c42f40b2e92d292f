"""An LPG that starts as A2C: its targets are A2C's, and its predictions mean values."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import learned_objectives as lo
from discover import LossConfig, recipes
from discover.console import Advice
from discover.searches import imitation
from discover.searches.families import LPGConfig

SMALL = {"cell": "gru", "hidden": 16, "predictions": 12, "see_gamma": False}
BIRTH = lo.Progress(0.0, 1.0)


def test_a_prediction_means_the_value_it_was_made_of():
    value = jnp.linspace(-7.0, 7.0, 33)
    np.testing.assert_allclose(imitation.value_of(imitation.logits_of(value, 16)), value, atol=0.02)
    beyond = imitation.value_of(imitation.logits_of(jnp.array([-50.0, 50.0]), 16))
    np.testing.assert_allclose(beyond, [-9.1, 9.1], atol=0.5)  # half of a Gaussian at the last centre
    assert float(imitation.value_of(jnp.zeros(16))) == pytest.approx(0.0, abs=1e-6)  # of an untrained agent


def test_targets_of_a2c_by_hand():
    logits = imitation.logits_of(jnp.array([[1.0], [2.0], [3.0]]), 41)
    rollout = lo.Rollout(
        obs=None,
        action=None,
        log_prob=jnp.log(jnp.array([[0.5], [0.25]])),
        critic=logits[:2],
        next_critic=logits[1:],
        reward=jnp.array([[1.0], [-1.0]]),
        terminated=jnp.array([[False], [True]]),
        truncated=jnp.array([[False], [False]]),
    )
    policy, value = imitation.targets_of_a2c(rollout, 0.9)
    second = -1.0 - 2.0
    first = 1.0 + 0.9 * 2.0 - 1.0 + 0.9 * 0.95 * second
    bonus = -0.01 * np.log([0.5, 0.25])
    np.testing.assert_allclose(policy[:, 0], [first + bonus[0], second + bonus[1]], rtol=1e-3)
    np.testing.assert_allclose(value[:, 0], [1.0 + first, 2.0 + second], rtol=1e-3)


@pytest.mark.slow
def test_an_lpg_learns_the_targets_of_a2c():
    fresh = LPGConfig(**SMALL | {"hidden": 32}).template(jax.random.key(0), LossConfig())
    taught = imitation.imitate_a2c(fresh, jax.random.key(1), steps=1500)
    before, after = (float(imitation.explained(x, jax.random.key(2))) for x in (fresh, taught))
    assert before < 0.1
    assert after > 0.98
    # On a rollout of rewards that none of the random ones had: one reward, three steps before the end of an episode.
    zero = jnp.zeros((20, 1))
    logits = imitation.logits_of(jnp.full((21, 1), 2.0), 12)
    rollout = lo.Rollout(
        None, None, jnp.log(0.5) + zero, logits[:-1], logits[1:], zero.at[9].set(1.0), zero.at[12].set(1) > 0, zero > 0
    )
    expected, _ = imitation.targets_of_a2c(rollout, 0.99)
    found = taught.targets(rollout, BIRTH).policy
    assert np.corrcoef(np.asarray(found[:13, 0]), np.asarray(expected[:13, 0]))[0, 1] > 0.99


@pytest.mark.slow
def test_a_start_that_is_too_small_to_imitate_says_so():
    recipe = dataclasses.replace(recipes.lpg_small(), objective=LPGConfig(**SMALL | {"hidden": 1}, start="a2c"))
    with (
        pytest.warns(Advice, match="it does not start as A2C"),
        pytest.warns(Advice, match="set agent.normalise_reward"),
    ):
        recipe.template()


def test_a_search_goes_on_from_an_earlier_rule(tmp_path):
    found = LPGConfig(**SMALL).template(jax.random.key(3), LossConfig())
    lo.save(found, tmp_path / "rule.safetensors")
    again = LPGConfig(**SMALL, start=str(tmp_path / "rule.safetensors"))
    assert again.keeps_copy
    made = again.template(jax.random.key(4), LossConfig(gamma=0.9))
    np.testing.assert_array_equal(made.kernel, found.kernel)
    assert made.gamma == 0.9
    other = LPGConfig(**SMALL | {"hidden": 8}, start=str(tmp_path / "rule.safetensors"))
    with pytest.raises(ValueError, match=r"is an LPG with hidden 16, and objective.hidden is 8: give the same"):
        other.template(jax.random.key(4), LossConfig())


@pytest.mark.parametrize("start", ["dpo", ""])
def test_what_is_no_lpg_is_refused(start):
    with pytest.raises(ValueError, match=r"objective.start must be 'random', 'a2c', or"):
        LPGConfig(**SMALL, start=start).template(jax.random.key(0), LossConfig())


def test_too_few_predictions_to_stand_for_values_are_refused():
    with pytest.raises(ValueError, match=r"^objective.predictions must be at least 8 for a start at A2C"):
        LPGConfig(**SMALL | {"predictions": 4}, start="a2c")


def test_an_unknown_start_is_answered_with_what_it_may_be():
    with pytest.raises(
        ValueError, match=r"objective.start is neither 'random', 'a2c', nor an LPG found before: Unknown"
    ):
        LPGConfig(**SMALL, start="radnom").template(jax.random.key(0), LossConfig())
