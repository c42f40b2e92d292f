"""What follows an episode's end is a fresh start of its own, whenever that is drawn."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import discover
import envs
import learned_objectives as lo
from discover.agents.agent import Agent
from discover.agents.rollout import at_once, auto_reset
from discover.devices.plan import CPU

T, B = 6, 3
DONE = np.random.default_rng(0).random((T, B)) < 0.4
DONE[2] = False  # a step at which nothing ends, and so nothing need be drawn
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiling is most of this file's time


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def followed(env, params, keys, *, at_once):
    """(observations, states) [T, B] that follow each of T steps, all of which end in the same place."""
    reset = jax.vmap(env.reset_env, in_axes=(0, None))
    now = reset(jax.random.split(jax.random.key(9), B), params)
    restart = auto_reset(env, params, keys, at_once=at_once)
    return jax.lax.map(lambda x: restart(*x, now), (jnp.arange(T), DONE))


@pytest.mark.parametrize(
    ("name", "starts"),
    [
        ("Breakout-MinAtar", 2),
        ("Breakout-MinAtar", T + 3),
        ("Freeway-MinAtar", T),
        ("gridworld/dense", T),
        ("CartPole-v1", T),
    ],
)
def test_a_start_is_the_reset_of_its_own_key(name, starts):
    env, params = envs.make(name, **{"observation": "planes"} if name == "gridworld/dense" else {})
    keys = jax.random.split(jax.random.key(1), (starts, B))
    reset = jit(jax.vmap(env.reset_env, in_axes=(0, None)))
    now = reset(jax.random.split(jax.random.key(9), B), params)
    found = {early: jit(partial(followed, env, params, at_once=early))(keys) for early in (True, False)}
    for t in range(T):
        fresh = reset(keys[t % starts], params)
        expected = jax.tree.map(
            lambda x, y, t=t: np.stack([(x if d else y)[b] for b, d in enumerate(DONE[t])]), fresh, now
        )
        for following in found.values():
            same(jax.tree.map(lambda x, t=t: x[t], following), expected)


def test_side_by_side_they_are_what_they_are_alone():
    env, params = envs.make("Breakout-MinAtar")
    keys = jax.random.split(jax.random.key(2), (2, T, B))
    alone = [jit(partial(followed, env, params, at_once=False))(k) for k in keys]
    together = jit(jax.vmap(partial(followed, env, params, at_once=False)))(keys)
    same(together, jax.tree.map(lambda *x: jnp.stack(x), *alone))


class Kinds:
    """Its starts are of another type than its steps."""

    def reset_env(self, key, params):
        return jnp.zeros(2), jnp.float32(1.5)


@pytest.mark.parametrize("early", [True, False])
def test_starts_may_have_types_of_their_own(early):
    keys = jax.random.split(jax.random.key(3), (1, B))
    restart = jit(auto_reset(Kinds(), None, keys, at_once=early))
    now = jnp.ones((B, 2), jnp.int32), jnp.full(B, 7)
    for done in (np.zeros(B, bool), np.arange(B) == 1):
        obs, state = restart(jnp.int32(0), done, now)
        assert (obs.dtype, state.dtype) == (jnp.float32, jnp.float32)
        assert obs[:, 0].tolist() == np.where(done, 0.0, 1.0).tolist()
        assert state.tolist() == np.where(done, 1.5, 7.0).tolist()


def test_large_observations_wait_for_their_step():
    """400 numbers, as in Breakout; but not where a reset is expensive, and made once a rollout."""
    assert not at_once(CPU, 400, num_starts=128, num_steps=128)
    assert at_once(CPU, 4, num_starts=128, num_steps=128)
    assert at_once(CPU, 400, num_starts=1, num_steps=128)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Breakout-MinAtar", "Asterix-MinAtar"])
def test_binary_observations_kept_as_booleans_change_nothing(name):
    """The networks get the same numbers: environments, rewards and, but for rounding, parameters are equal, wherever last
    observations are valued."""
    env, params = envs.make(name)
    config = discover.AgentConfig(num_envs=4, num_steps=64, num_minibatches=2, hidden=(16,))
    objective, found = lo.load("ppo"), []
    for changes in ({}, {"binary_obs": True}, {"binary_obs": True, "eager_starts": None, "late_values": None}):
        agent = Agent.fit(env, config, objective, dataclasses.replace(CPU, **changes))
        task = agent.task(params.replace(max_steps_in_episode=np.int32(20)), 512)
        state, _ = jit(partial(agent.train, num_updates=2))(objective, task, jax.random.key(0))
        found.append(state.replace(key=jax.random.key_data(state.key)))
    assert found[0].env.obs.dtype == jnp.float32
    for other in found[1:]:
        same(found[0].env, other.env)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7), found[0].params, other.params)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in envs.available() if n.endswith("-MinAtar")])
def test_observations_that_are_said_to_be_binary_are(name):
    env, params = envs.make(name)
    assert env.binary_obs
    _, state = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(jax.random.key(0), 8), params)

    def step(state, key):
        action = jax.random.randint(key, (8,), 0, env.num_actions)
        obs, state, *_ = jax.vmap(env.step, in_axes=(0, 0, 0, None))(jax.random.split(key, 8), state, action, params)
        return state, obs

    seen = jit(lambda s: jax.lax.scan(step, s, jax.random.split(jax.random.key(1), 300))[1])(state)
    assert set(np.unique(seen)) == {0.0, 1.0}
