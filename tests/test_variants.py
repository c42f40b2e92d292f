"""Neighbours of the mirror family: another critic, other advantages, another reward. The rest is a Mirror's."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_mirror import BIRTH, GAMMA, LAMBDA, random_rollout

import discover
import learned_objectives as lo
from discover.agents.config import AgentConfig

HL = lo.HLGaussMirror(gamma=GAMMA, gae_lambda=LAMBDA, bins=21, limit=5.0)


def mass(value, low, high, deviation):
    """Of a normal distribution between two bounds, by the standard library."""
    return 0.5 * (math.erf((high - value) / deviation / 2**0.5) - math.erf((low - value) / deviation / 2**0.5))


@pytest.mark.parametrize("value", [-5.0, -1.3, 0.0, 4.9])
def test_hl_gauss_puts_the_mass_of_a_normal_into_bins(value):
    edges, deviation = np.linspace(-5, 5, 22), 0.75 * 10 / 21
    expected = np.array([mass(value, a, b, deviation) for a, b in itertools.pairwise(edges)])
    np.testing.assert_allclose(HL.distribution(jnp.float32(value)), expected / expected.sum(), atol=1e-5)


@pytest.mark.parametrize("value", [-3.0, 0.2, 2.7])
def test_hl_gauss_reads_back_the_value_it_writes(value):
    logits = jnp.log(HL.distribution(jnp.float32(value)) + 1e-12)
    assert float(HL.value(logits)) == pytest.approx(value, abs=0.01)


def test_hl_gauss_counts_values_beyond_its_range_as_its_ends():
    np.testing.assert_array_equal(HL.distribution(jnp.float32(50.0)), HL.distribution(jnp.float32(5.0)))


def test_hl_gauss_has_the_advantages_of_a_mirror_with_these_values():
    rollout = random_rollout(0, 6, 3)
    value, following = rollout.critic[..., 0], rollout.next_critic[..., 0]
    logits = lambda v: jnp.log(HL.distribution(v) + 1e-12)
    found = HL.targets(rollout._replace(critic=logits(value), next_critic=logits(following)), BIRTH)
    expected = lo.Mirror(gamma=GAMMA, gae_lambda=LAMBDA).targets(rollout, BIRTH)
    np.testing.assert_allclose(found.advantage, expected.advantage, atol=0.05)
    np.testing.assert_allclose(found.value, expected.value, atol=0.05)


def test_hl_gauss_loss_is_a_cross_entropy_whose_minimum_is_the_distribution():
    rollout = random_rollout(1, 4, 2)
    targets = HL.targets(rollout._replace(critic=jnp.zeros((4, 2, 21)), next_critic=jnp.zeros((4, 2, 21))), BIRTH)
    at = lambda critic: HL.critic_loss(critic, rollout, targets, BIRTH)[0]
    best = jnp.log(HL.distribution(targets.value) + 1e-12)
    assert float(jnp.abs(jax.grad(at)(best)).max()) < 1e-6
    assert float(at(best)) < float(at(best + jax.random.normal(jax.random.key(0), best.shape)))


def test_group_advantages_are_returns_less_their_mean_over_environments():
    rollout = random_rollout(2, 5, 4)
    reward = np.asarray(rollout.reward, np.float64)
    end = np.asarray(rollout.terminated) | np.asarray(rollout.truncated)
    returned = np.zeros((6, 4))
    for t in reversed(range(5)):
        returned[t] = reward[t] + GAMMA * (1 - end[t]) * returned[t + 1]
    expected = returned[:5] - returned[:5].mean(1, keepdims=True)
    objective = lo.GroupMirror(gamma=GAMMA)
    np.testing.assert_allclose(objective.targets(rollout, BIRTH).advantage, expected, atol=1e-5)


def test_a_group_mirror_does_not_train_its_critic():
    rollout = random_rollout(3, 5, 4)
    objective = lo.GroupMirror(gamma=GAMMA)
    targets = objective.targets(rollout, BIRTH)
    slope = jax.grad(lambda critic: objective.critic_loss(critic, rollout, targets, BIRTH)[0])(rollout.critic)
    assert not np.asarray(slope).any()


def test_munchausen_is_a_mirror_on_another_reward():
    rollout = random_rollout(4, 5, 4)
    log_prob = np.array([-0.1, -2.0, -100.0, 0.0], np.float32) + np.zeros((5, 1), np.float32)
    rollout = rollout._replace(log_prob=jnp.asarray(log_prob))
    bonus = 0.9 * np.array([-0.003, -0.06, -1.0, 0.0])  # alpha tau log pi, and the floor for the third
    expected = lo.Mirror(gamma=GAMMA).targets(rollout._replace(reward=rollout.reward + jnp.float32(bonus)), BIRTH)
    found = lo.MunchausenMirror(gamma=GAMMA).targets(rollout, BIRTH)
    np.testing.assert_allclose(found.advantage, expected.advantage, atol=1e-5)


@pytest.mark.parametrize("q", [0.0, 0.999, 1.0, 1.001, 2.0])
def test_tsallis_is_continuous_in_its_order_and_meets_its_special_cases(q):
    log_ratio = np.linspace(-1.5, 1.5, 31)
    r = np.exp(log_ratio)
    expected = {0.0: r - 1 - np.log(r), 2.0: (r - 1) ** 2 / 2}.get(q, r * np.log(r) - r + 1)
    found = lo.Tsallis(1.0, q)(jnp.float32(log_ratio), jnp.ones(31))
    np.testing.assert_allclose(found, expected, atol=3e-3 if q not in (0.0, 1.0, 2.0) else 1e-5)


def test_spo_is_largest_where_ppo_begins_to_clip():
    ratio = np.linspace(0.5, 1.5, 1001)
    for advantage, best in ((2.0, 1.2), (-2.0, 0.8)):
        gain = lo.SPO().surrogate(jnp.log(jnp.float32(ratio)), jnp.full(1001, jnp.float32(advantage)))
        assert ratio[np.argmax(gain)] == pytest.approx(best, abs=2e-3)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lo.HLGaussMirror(bins=1), "the bins of an HLGaussMirror must be at least 2, and are 1"),
        (lo.HLGaussMirror(limit=-1.0), "the limit of an HLGaussMirror must be positive"),
        (lo.HLGaussMirror(width=float("inf")), "the width of an HLGaussMirror must be positive and finite"),
        (lo.Tsallis(1.0, 9.0), r"must be in \[-1, 3\], and is 9.0"),
    ],
)
def test_fields_that_cannot_be_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        wrong.validate()


@pytest.mark.parametrize(
    "objective", [lo.HLGaussMirror(), lo.GroupMirror(), lo.MunchausenMirror()], ids=lambda x: type(x).__name__
)
def test_each_trains_an_agent_and_survives_a_file(objective, tmp_path):
    lo.save(objective, tmp_path / "it.safetensors")
    again = lo.load(tmp_path / "it.safetensors")
    assert again == objective
    agent = AgentConfig(num_envs=4, num_steps=64, normalise_reward=True, learning_rate=2e-3)
    returns = discover.train(again, "CartPole-v1", total_steps=16_384, num_seeds=2, agent=agent, num_evals=4).returns
    assert returns[:, -1].mean() > 1.5 * 21.2  # a random policy's


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="set num_envs to at least 2"):
        lo.GroupMirror().targets(random_rollout(0, 5, 1), BIRTH)


def test_a_search_from_an_instance_keeps_its_variant():
    template = discover.Recipe(objective=lo.HLGaussMirror(drift=lo.Clip(jnp.float32(0.3)))).template()
    assert type(template) is lo.HLGaussMirror
    assert float(template.drift.epsilon) == pytest.approx(0.3)
