"""A recipe survives the record of the objective that it made."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import learned_objectives as lo
from discover import LPOConfig, recipes
from discover.console import Advice
from discover.searches.families import SoftClipConfig, TunedPPOConfig
from discover.searches.family_of import objective_config
from discover.searches.recipe import recipe_of


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_comes_back_from_its_record(name):
    recipe = recipes.get(name)
    record = json.loads(json.dumps({"recipe": recipe.as_dict()}))
    assert recipe_of(record) == recipe


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({}, "holds no recipe"),
        ({"recipe": {"colour": "red"}}, "does not fit this version"),
        ({"recipe": {"agent": {"num_envs": "many"}}}, "does not fit this version"),
        ({"recipe": {"agent": 3}}, "does not fit this version"),
        ({"recipe": {"generations": 0}}, "generations must be at least 1"),
    ],
)
def test_a_record_without_one_is_refused(record, sentence):
    with pytest.raises(ValueError, match=sentence):
        recipe_of(record)


@pytest.fixture
def found(tmp_path):
    """An LPO as a search might have left it, and its file."""
    drift = lo.LPO.create(jax.random.key(0), width=8, epsilon=None).replace(out=jnp.arange(8.0))
    lo.save(lo.Mirror(drift=drift), tmp_path / "found.safetensors")
    return drift, str(tmp_path / "found.safetensors")


def test_an_environment_twice_is_refused():
    with pytest.raises(ValueError, match=r"^envs must name each environment once, and has Acrobot-v1 2 times\.$"):
        dataclasses.replace(recipes.quickstart(), envs=("CartPole-v1", "Acrobot-v1", "Acrobot-v1"))


def test_a_search_starts_from_what_another_found(found):
    drift, path = found
    recipe = dataclasses.replace(recipes.lpo_minatar(), objective=LPOConfig(start=path))
    again = recipe.template()
    assert again.value_clip == recipe.loss.value_clip
    jax.tree.map(np.testing.assert_array_equal, again.drift, drift)


def test_a_time_aware_search_starts_from_a_timeless_drift(found):
    drift, path = found
    template = dataclasses.replace(recipes.ta_lpo(), objective=LPOConfig(time_aware=True, start=path)).template()
    jax.tree.map(np.testing.assert_array_equal, template.drift, drift.timed())


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        ("pop", "did you mean 'ppo'"),
        ("dpo", "dpo holds something else"),
        ("lpg", "lpg holds something else"),
        ("nowhere.safetensors", "There is no file"),
    ],
)
def test_no_search_starts_from_what_is_no_lpo(start, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(recipes.lpo_minatar(), objective=LPOConfig(start=start)).template()


@pytest.mark.parametrize("start", ["", None])
def test_a_start_that_cannot_be_is_refused(start):
    with pytest.raises(ValueError, match="start must be"):
        LPOConfig(start=start)


def test_a_timeless_search_does_not_start_from_a_time_aware_drift(found, tmp_path):
    lo.save(found[0].timed(), tmp_path / "timed.safetensors")
    recipe = dataclasses.replace(recipes.lpo_minatar(), objective=LPOConfig(start=str(tmp_path / "timed.safetensors")))
    with pytest.raises(ValueError, match="is time-aware, and an lpo is not"):
        recipe.template()


def test_ppo_to_be_tuned_begins_as_ppo():
    made = dataclasses.replace(recipes.soft_clip_small(), objective="tuned_ppo").template()
    assert [x.shape for x in jax.tree.leaves(made)] == [(), (), (1, 4)]
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(made))
    ppo = made.settings(None)
    assert (made.drift.epsilon, ppo.value_clip, ppo.entropy_coef) == pytest.approx((0.2, 0.2, 0.01))
    assert (ppo.value_coef, ppo.gae_lambda) == pytest.approx((0.5, 0.95))


def test_schedules_may_be_searched_with_a_soft_clip():
    family = SoftClipConfig(time_aware=True, schedules=True)
    made = dataclasses.replace(recipes.soft_clip_small(), objective=family).template()
    assert sorted(x.shape for x in jax.tree.leaves(made)) == [(3, 2, 6), (3, 4)]


@pytest.mark.parametrize(
    ("name", "value"), [("rate_spread", 0.5), ("rate_spread", float("inf")), ("constant_rates", 1.5)]
)
def test_distributions_of_learning_rates_that_cannot_be_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        dataclasses.replace(recipes.soft_clip_small(), **{name: value})


def test_a_search_does_not_drop_schedules(tmp_path):
    scheduled = lo.ScheduledMirror.create(lo.SoftClip.create()).replace(numbers=jnp.ones((1, 4)))
    lo.save(scheduled, tmp_path / "found.safetensors")
    family = SoftClipConfig(start=str(tmp_path / "found.safetensors"), schedules=True)
    with pytest.raises(ValueError, match=r"found.safetensors holds a drift with schedules"):
        dataclasses.replace(recipes.soft_clip_small(), objective=family).template()
    with pytest.raises(ValueError, match="does not start from a ScheduledMirror"):
        dataclasses.replace(recipes.soft_clip_small(), objective=scheduled)


def test_numbers_without_effect_are_named():
    recipe = dataclasses.replace(recipes.quickstart(), objective="tuned_ppo")  # whose loss has no value clip
    with pytest.warns(Advice, match=r"The search cannot move loss.value_clip, which it multiplies: it is off"):
        recipe.template()


def test_tuned_ppo_keeps_the_settings_before_it():
    before = TunedPPOConfig(time_aware=True, epsilon=0.1)
    assert objective_config("tuned_ppo", before) == before
