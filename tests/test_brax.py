"""Brax speaks the gymnax interface, with time limits and starts of our own."""

import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs

NAME = "brax/inverted_pendulum"


@pytest.fixture(scope="module")
def pendulum():
    return envs.make(NAME, pool_size=8)


@pytest.mark.slow
def test_keeps_the_contract(pendulum):
    envs.check(*pendulum)


def test_the_backend_is_recorded(pendulum):
    env, params = pendulum
    assert (env.name, env.backend) == ("brax/inverted_pendulum@spring", "spring")
    assert params.max_steps_in_episode == 1000
    for name, kwargs in ((NAME + "@spring", {}), (NAME, {"backend": "spring"})):
        assert envs.make(name, pool_size=8, **kwargs)[0] is env
    other, params = envs.make(NAME + "@positional", episode_length=7, pool_size=2)
    assert (other.name, other.backend) == ("brax/inverted_pendulum@positional", "positional")
    assert params.max_steps_in_episode == 7
    assert params.starts[0].shape == (2, 4)


@pytest.mark.parametrize("name", ["brax/swimmer", "brax/fast", "brax/swimmer@mjx"])
def test_what_does_not_run_is_refused(name):
    with pytest.raises(ValueError, match=r"'brax/(swimmer|fast)' is left out: .+\.$"):
        envs.make(name)
    assert name not in envs.available()


@pytest.mark.slow
def test_a_step_is_a_step_of_brax(pendulum):
    from brax import envs as brax_envs

    env, params = pendulum
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw = brax_envs.get_environment("inverted_pendulum", backend="spring")
    quickly = {"xla_backend_optimization_level": 0}  # compilation is most of this file's time
    raw_state = jax.jit(raw.reset, compiler_options=quickly)(jax.random.key(3))
    obs, state = env.reset(jax.random.key(3), params)
    np.testing.assert_allclose(obs, raw_state.obs, rtol=1e-6)
    raw_step = jax.jit(raw.step, compiler_options=quickly)
    for action in ([0.3], [-5.0], [0.7]):
        raw_state = raw_step(raw_state, jnp.clip(jnp.array(action), -1, 1))
        out = env.step(jax.random.key(0), state, jnp.array(action), params)
        obs, state, reward, terminated, truncated, _ = out
        np.testing.assert_allclose(obs, raw_state.obs, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(state.pipeline_state.q, raw_state.pipeline_state.q, rtol=1e-4)
        assert reward == raw_state.reward == 1.0
        assert not terminated
        assert not truncated
    assert state.time == 3


def test_actions_are_clipped(pendulum, monkeypatch):
    class Echo:  # this task's actuator clips by itself; others charge for the raw action
        def step(self, state, action):
            return state.replace(obs=action, reward=action.sum())

    env, params = pendulum
    _, state = env.reset(jax.random.key(0), params)
    monkeypatch.setattr(env, "env", Echo())
    for action, expected in ((-5.0, -1.0), (0.25, 0.25), (3.0, 1.0)):
        _, _, reward, _, _ = env.step_env(jax.random.key(0), state, jnp.array([action]), params)
        assert reward == expected


def test_a_fall_terminates_and_a_time_limit_truncates(pendulum):
    env, params = pendulum
    for limit, expected in ((1000, (True, False)), (3, (False, True))):
        limited = params.replace(max_steps_in_episode=np.int32(limit))
        out, steps = _until_end(env, limited)
        obs, state, _, terminated, truncated, info = out
        assert (bool(terminated), bool(truncated)) == expected
        assert info["discount"] == 1.0 - terminated
        assert state.time == 0
        assert steps == limit or not truncated
        # |angle| > 0.2 ends the game; starts lie within 0.01 of upright.
        assert (abs(info["final_observation"][1]) > 0.2) == terminated
        assert abs(obs[1]) <= 0.01


def test_both_flags_may_be_true(pendulum):
    env, params = pendulum
    _, steps = _until_end(env, params)
    limited = params.replace(max_steps_in_episode=np.int32(steps))
    out, _ = _until_end(env, limited)
    assert out[3]
    assert out[4]


def test_starts_come_from_the_pool_and_vary(pendulum):
    env, params = pendulum
    pool = np.asarray(params.starts[0])
    assert len(np.unique(pool, axis=0)) == 8
    starts = _starts(env, params)
    assert all((start == pool).all(axis=1).any() for start in starts)
    assert len(np.unique(starts, axis=0)) > 4


def test_a_start_is_one_state_and_its_observation(pendulum):
    _, params = pendulum
    obs, state = params.starts
    pipeline = state.pipeline_state
    np.testing.assert_array_equal(obs, np.concatenate([pipeline.q, pipeline.qd], axis=1))
    np.testing.assert_array_equal(state.time, np.zeros(8, np.int32))


def test_refresh_draws_a_new_pool(pendulum):
    env, params = pendulum
    fresh = env.refresh(jax.random.key(5), params)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)
    assert fresh.max_steps_in_episode == params.max_steps_in_episode
    old, new = np.asarray(params.starts[0]), np.asarray(fresh.starts[0])
    assert not any((start == old).all(axis=1).any() for start in new)
    assert all((start == new).all(axis=1).any() for start in _starts(env, fresh))
    again = env.refresh(jax.random.key(5), params)
    np.testing.assert_array_equal(again.starts[0], new)


def test_reset_is_fresh(pendulum):
    env, params = pendulum
    obs, _ = env.reset(jax.random.key(9), params)
    other, _ = env.reset(jax.random.key(10), params)
    assert not np.array_equal(obs, other)
    assert not (np.asarray(obs) == np.asarray(params.starts[0])).all(axis=1).any()


def test_refreshing_every_rollout_compiles_nothing_new(pendulum):
    env, params = pendulum
    _, state = env.reset(jax.random.key(0), params)
    env.step(jax.random.key(0), state, jnp.zeros(1), params)
    before = env.step._cache_size()
    for seed in range(2):
        params = env.refresh(jax.random.key(seed), params)
        _, state = env.reset(jax.random.key(seed), params)
        env.step(jax.random.key(0), state, jnp.zeros(1), params)
    assert env.step._cache_size() == before


def test_it_can_be_pickled(pendulum):
    env, params = pendulum
    twin = pickle.loads(pickle.dumps(env))
    assert (twin.name, twin.backend) == (env.name, env.backend)
    jax.tree.map(np.testing.assert_array_equal, twin.default_params, params)


def test_importing_envs_leaves_brax_alone_and_making_one_is_silent(tmp_path):
    code = """
import sys, warnings, envs
assert not any(name.split(".")[0] == "brax" for name in sys.modules), "brax was imported"
filters = list(warnings.filters)
from envs.suites.brax import Brax, brax_envs, _quiet
with _quiet():
    brax_envs.get_environment("halfcheetah", backend="spring")
added = [entry for entry in warnings.filters if entry not in filters]
assert not [entry for entry in added if entry[0] == "ignore" and entry[1] is None], added
"""
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(envs.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    assert "warp" not in done.stdout + done.stderr
    assert "brax" not in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())  # mujoco can leave a log file


def _until_end(env, params):
    """What the step that ends an episode returns, and how many steps it took."""
    _, state = env.reset(jax.random.key(0), params)
    for steps in range(1, 200):
        out = env.step(jax.random.key(steps), state, jnp.ones(1), params)
        state = out[1]
        if out[3] | out[4]:
            return out, steps
    raise AssertionError("pushed one way, the pendulum should have fallen")


def _starts(env, params):
    """Observations after 20 auto-resets, one per step."""
    params = params.replace(max_steps_in_episode=np.int32(1))
    _, state = env.reset(jax.random.key(0), params)
    # One by one, since a step is compiled already.
    return np.stack([env.step(jax.random.key(i), state, jnp.zeros(1), params)[0] for i in range(1, 21)])
