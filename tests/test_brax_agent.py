"""A drift of ours in Brax's own PPO: with PPO's clip it is Brax's loss."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.training import types
from brax.training.acme import running_statistics, specs
from brax.training.agents.ppo import losses, networks

import learned_objectives as lo
from benchmarks import brax_agent
from benchmarks.brax_agent import Life

B, T, OBS, ACT = 6, 5, 4, 2
SETTINGS = {
    "entropy_cost": 0.01,
    "discounting": 0.97,
    "reward_scaling": 0.3,
    "gae_lambda": 0.95,
    "clipping_epsilon": 0.2,
    "normalize_advantage": True,
    "vf_coefficient": 0.5,
    "clipping_epsilon_value": None,
    "use_distributional_critic": False,
}
LIFE = Life("fast", 1_000_000, "ppo", 1e-3, 1, 0, discount=0.97, entropy_coef=0.01)


@pytest.fixture
def batch():
    """(network, parameters, normaliser at 300,000 steps, transitions [B, T] whose policy has moved since)."""
    network = networks.make_ppo_networks(OBS, ACT, preprocess_observations_fn=running_statistics.normalize)
    keys = jax.random.split(jax.random.key(0), 8)
    params = losses.PPONetworkParams(network.policy_network.init(keys[0]), network.value_network.init(keys[1]))
    normaliser = running_statistics.init_state(specs.Array((OBS,), jnp.dtype("float32")))
    normaliser = normaliser.replace(count=types.UInt64(hi=0, lo=300_000))
    obs = jax.random.normal(keys[2], (B, T, OBS))
    logits = network.policy_network.apply(normaliser, params.policy, obs)
    distribution = network.parametric_action_distribution
    raw = distribution.sample_no_postprocessing(logits, keys[3])
    log_prob = distribution.log_prob(logits, raw) + 0.5 * jax.random.normal(keys[4], (B, T))
    truncation = (jax.random.uniform(keys[5], (B, T)) < 0.2).astype(jnp.float32)
    data = types.Transition(
        observation=obs,
        action=distribution.postprocess(raw),
        reward=jax.random.normal(keys[6], (B, T)),
        discount=1.0 - (jax.random.uniform(keys[7], (B, T)) < 0.3),
        next_observation=obs[:, ::-1],
        extras={
            "state_extras": {"truncation": truncation},
            "policy_extras": {"raw_action": raw, "log_prob": log_prob, "distribution_params": logits},
        },
    )
    return network, params, normaliser, data


def loss_and_gradient(loss, batch, **settings):
    network, params, normaliser, data = batch
    f = jax.value_and_grad(loss, has_aux=True)
    (total, metrics), gradient = f(params, normaliser, data, jax.random.key(9), network, **(SETTINGS | settings))
    return total, metrics, jax.tree.leaves(gradient)


def test_with_the_clip_of_ppo_it_is_the_loss_of_brax(batch):
    theirs = loss_and_gradient(losses.compute_ppo_loss, batch)
    ours = loss_and_gradient(brax_agent.with_drift(losses.compute_ppo_loss, brax_agent.mirror_of(LIFE), LIFE), batch)
    assert float(ours[0]) == pytest.approx(float(theirs[0]), abs=1e-5)
    assert float(ours[1]["policy_loss"]) == pytest.approx(float(theirs[1]["policy_loss"]), abs=1e-5)
    for x, y in zip(ours[2], theirs[2], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)
    other = lo.Mirror(drift=lo.DPO()).replace(entropy_coef=0.01)
    moved = loss_and_gradient(brax_agent.with_drift(losses.compute_ppo_loss, other, LIFE), batch)
    assert max(float(np.abs(x - y).max()) for x, y in zip(moved[2], theirs[2], strict=True)) > 1e-3


def test_a_schedule_is_what_it_says_at_this_moment_of_the_life(batch):
    """After 300,000 steps, the rollout of the update included, of 1,000,000: n/N = 0.295904."""
    numbers = jnp.zeros((3, 4)).at[1, :3].set(jnp.log(jnp.array([4.0, 0.25, 3.0])))
    mirror = lo.ScheduledMirror.create(lo.Clip(), time_aware=True).replace(numbers=numbers, entropy_coef=0.01)
    ours = loss_and_gradient(brax_agent.with_drift(losses.compute_ppo_loss, mirror, LIFE), batch)
    t = (300_000 - 64 * 64) / 1_000_000
    theirs = loss_and_gradient(
        losses.compute_ppo_loss,
        batch,
        entropy_cost=0.01 * 4**t,
        vf_coefficient=0.5 * 0.25**t,
        gae_lambda=1 - 0.05 * 3**t,
    )
    assert float(ours[0]) == pytest.approx(float(theirs[0]), abs=1e-5)
    for x, y in zip(ours[2], theirs[2], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_brax_trains_with_it_and_is_itself_again_after(tmp_path):
    own = losses.compute_ppo_loss
    life = Life("fast", 16_384, "ta_lpo", 1e-3, 1, 0, episode_length=100)
    spec = json.loads(json.dumps(vars(life)))
    (found,) = brax_agent.train(Life(**spec))
    assert np.isfinite(found)
    assert losses.compute_ppo_loss is own
