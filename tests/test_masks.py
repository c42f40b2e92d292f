"""Action masks: policies, entropies and divergences have the valid actions alone. The oracle is NumPy over the valid ones."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments.spaces import Box, Discrete

import discover
import envs
from discover.agents.agent import Agent
from discover.agents.distributions import Categorical, MaskedCategorical, MaskedMultiCategorical, MultiCategorical
from envs.spaces import MultiDiscrete
from tests.test_disco import rule_at_random

AGENT = discover.AgentConfig(num_envs=4, num_steps=8, num_epochs=2, num_minibatches=2, hidden=(8,))
LOGITS, OTHER = (np.random.default_rng(seed).normal(size=(6, 5)) for seed in (0, 1))
MASK = np.random.default_rng(2).random((6, 5)) < 0.5
MASK[:, 2] = True
MASK[0] = [False, False, True, False, False]  # a single valid action


@struct.dataclass
class Deck:
    valid: jax.Array  # bool[4]
    time: jax.Array  # i32[]


@struct.dataclass
class Rules:
    max_steps_in_episode: jax.Array


class Cards(envs.Environment):
    """Four cards, each of which can be played once. Card k has the reward k; one that is gone has the reward -1,000,000."""

    name = "cards"
    num_actions = 4

    @property
    def default_params(self):
        return Rules(jnp.int32(3))

    def reset_env(self, key, params):
        state = Deck(jnp.ones(4, bool), jnp.int32(0))
        return state.valid.astype(jnp.float32), state

    def step_env(self, key, state, action, params):
        reward = jnp.where(state.valid[action], action.astype(jnp.float32), -1e6)
        state = Deck(state.valid & (jnp.arange(4) != action), state.time + 1)
        return state.valid.astype(jnp.float32), state, reward, jnp.bool_(False), {"discount": jnp.float32(1.0)}

    def action_mask(self, state, params):
        return state.valid

    def observation_space(self, params):
        return Box(0.0, 1.0, (4,), jnp.float32)

    def action_space(self, params=None):
        return Discrete(4)


class Pairs(Cards):
    """One of four cards and one of two places, of which the second is never valid."""

    name = "pairs"

    def step_env(self, key, state, action, params):
        obs, state, reward, terminated, info = super().step_env(key, state, action[0], params)
        return obs, state, jnp.where(action[1] == 0, reward, -1e6), terminated, info

    def action_mask(self, state, params):
        return jnp.concatenate([state.valid, jnp.array([True, False])])

    def action_space(self, params=None):
        return MultiDiscrete((4, 2))


def probabilities(logits, mask):
    """NumPy's, by row: zero where the mask is false."""
    weights = np.where(mask, np.exp(logits - logits.max(-1, keepdims=True)), 0.0)
    return weights / weights.sum(-1, keepdims=True)


def masked(logits, mask=MASK):
    return MaskedCategorical.of(Categorical(jnp.asarray(logits, jnp.float32)), jnp.asarray(mask))


def test_probabilities_entropy_and_divergence_are_those_over_the_valid_actions():
    p, q = probabilities(LOGITS, MASK), probabilities(OTHER, MASK)
    policy = masked(LOGITS)
    np.testing.assert_allclose(jnp.exp(policy.log_probs), p, rtol=1e-5, atol=1e-7)
    assert not np.asarray(jnp.exp(policy.log_probs))[~MASK].any()  # exactly 0
    log_p, log_q = (np.log(x, where=MASK, out=np.zeros_like(x)) for x in (p, q))
    np.testing.assert_allclose(policy.entropy(), -(p * log_p).sum(-1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(policy.kl(masked(OTHER)), (p * (log_p - log_q)).sum(-1), rtol=1e-4, atol=1e-6)
    most = np.log(np.maximum(MASK.sum(-1), 2))
    np.testing.assert_allclose(policy.relative_entropy(), -(p * log_p).sum(-1) / most, rtol=1e-4, atol=1e-6)
    for action in range(5):
        valid = MASK[:, action]
        found = policy.log_prob(jnp.full(6, action))
        np.testing.assert_allclose(np.asarray(found)[valid], log_p[valid, action], rtol=1e-4, atol=1e-6)


def test_samples_and_modes_are_valid():
    policy = masked(LOGITS - 50.0 * MASK)  # the logits of the invalid ones are far higher
    noise = Categorical.noise(jax.random.key(0), (1000, 6), 5)
    drawn = np.asarray(policy.sample(noise))
    assert MASK[np.arange(6), drawn].all()
    assert MASK[np.arange(6), np.asarray(policy.mode())].all()
    assert set(drawn[:, 1]) == set(np.flatnonzero(MASK[1]))


def test_gradients_are_finite_and_zero_for_invalid_actions():
    def total(logits):
        policy = masked(logits)
        return (policy.log_prob(jnp.full(6, 2)) + policy.entropy() + policy.kl(masked(OTHER))).sum()

    slopes = np.asarray(jax.grad(total)(jnp.asarray(LOGITS, jnp.float32)))
    assert np.isfinite(slopes).all()
    assert not slopes[~MASK].any()
    assert slopes[1:][MASK[1:]].any()


def test_a_product_of_choices_is_masked_choice_by_choice():
    mask = np.array([[True, False, True, False, True]])
    logits = LOGITS[:1]
    policy = MaskedMultiCategorical.of(MultiCategorical(jnp.asarray(logits, jnp.float32), (3, 2)), jnp.asarray(mask))
    p = [probabilities(logits[:, part], mask[:, part]) for part in (slice(0, 3), slice(3, 5))]
    np.testing.assert_allclose(policy.log_prob(jnp.array([[2, 1]])), np.log(p[0][:, 2] * p[1][:, 1]), rtol=1e-5)
    entropy = -(p[0][:, [0, 2]] * np.log(p[0][:, [0, 2]])).sum(-1)  # the second choice has one option, and none
    np.testing.assert_allclose(policy.entropy(), entropy, rtol=1e-5)
    np.testing.assert_allclose(policy.relative_entropy(), entropy / np.log(2), rtol=1e-5)


@pytest.mark.parametrize("env", [Cards, Pairs])
@pytest.mark.parametrize("network", ["auto", "gru"])
@pytest.mark.parametrize("objective", ["ppo", "ta_lpo", "lpg"])
def test_agents_never_choose_an_invalid_action(env, network, objective):
    config = replace(AGENT, network=network, num_epochs=1, num_minibatches=1)
    result = discover.train(objective, env(), total_steps=20 * 32, num_seeds=2, agent=config)
    assert (result.returns >= 0).all()  # one invalid action is -1,000,000
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(result.state.params))


def test_ppo_learns_the_best_order_of_valid_actions():
    result = discover.train("ppo", Cards(), total_steps=300 * 32, num_seeds=2, agent=AGENT)
    state = jax.tree.map(lambda x: x[0], result.state)
    found = result.agent.evaluate(result.task, state, jax.random.key(0), num_episodes=4, greedy=True)
    assert found.tolist() == [6.0] * 4  # 3 + 2 + 1


def test_a_rule_with_heads_trains_by_valid_actions_alone():
    rule = rule_at_random()
    agent = Agent.fit(envs.make(Cards())[0], replace(AGENT, max_update=1.0), rule)
    task = agent.task(agent.env.default_params, 20 * 32)
    state, returns = agent.train(rule, task, jax.random.key(0), num_updates=4)
    assert float(returns[0]) >= 0
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state.params))
    _, rollout, metrics = agent.step(rule, task, state)
    assert (
        float(jnp.abs(metrics["policy_loss"]).max()) < 100
    )  # KL to a target with an invalid action is 1e9 times its share
    invalid = ~rollout.obs.mask
    assert not np.asarray(jax.nn.softmax(rollout.critic["logits"]))[np.asarray(invalid)].any()


def test_masks_survive_the_adaptation_of_an_environment_and_its_check():
    env, params = envs.make(Cards())
    assert env.action_mask is not None
    envs.check(env, params)


class Square(Cards):
    def action_mask(self, state, params):
        return state.valid[:3]


class Counted(Cards):
    def action_mask(self, state, params):
        return state.valid.astype(jnp.int32)


class Missing(Cards):
    def action_mask(self, state, params):
        return state.cards


class Empty(Cards):
    def action_mask(self, state, params):
        return state.valid & (state.time < 1)


class Smooth(Cards):
    def action_space(self, params=None):
        return Box(-1.0, 1.0, (1,), jnp.float32)

    def step_env(self, key, state, action, params):
        return super().step_env(key, state, jnp.int32(0), params)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (Square, r"gives action_mask as bool\[3\], not bool\[4\], a flag for each action"),
        (Counted, r"gives action_mask as int32\[4\], not bool\[4\]"),
        (Missing, r"has an action_mask that cannot be traced \(AttributeError: .*cards"),
        (Smooth, r"has an action_mask, and its actions are continuous"),
        (type("Named", (Cards,), {"action_mask": 3}), r"has action_mask 3, and it must be a function of a state"),
    ],
)
def test_a_mask_of_a_wrong_kind_is_refused(kind, sentence):
    with pytest.raises(AssertionError, match=sentence):
        envs.check(kind(), kind().default_params)
    with pytest.raises(ValueError, match=sentence):
        envs.make(kind())


def test_a_mask_without_a_valid_action_is_refused():
    with pytest.raises(AssertionError, match=r"^cards gives an action_mask in which no action is valid\."):
        envs.check(Empty(), Empty().default_params)
