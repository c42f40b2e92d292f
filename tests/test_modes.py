"""JAX's modes that a user's process may have set: `train` and `meta_train` give the same bits; smaller parts work in them.

CI runs this file once more in a process with JAX_ENABLE_X64=1, where it also covers what is made at import.
"""

import contextlib

import crash
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import discover
import envs
import learned_objectives as lo
from discover.agents.agent import Agent
from discover.devices.modes import PLAIN, plain_jax

pytestmark = pytest.mark.slow

MODES = {
    "x64": lambda: jax.enable_x64(True),
    "debug_nans": lambda: jax.debug_nans(True),
    "disable_jit": jax.disable_jit,
    "strict_promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "no_rank_promotion": lambda: jax.numpy_rank_promotion("raise"),
}
SMALL = discover.AgentConfig(num_envs=4, num_steps=16, num_minibatches=2, hidden=(8,))


def train(objective="lpo", env="CartPole-v1"):
    return discover.train(objective, env, total_steps=256, num_seeds=2, num_evals=2, agent=SMALL).returns


@pytest.fixture(scope="module")
def plain():
    return train()


@pytest.mark.parametrize("mode", MODES)
def test_training_gives_the_same_bits(mode, plain):
    with MODES[mode]():
        found = train()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, plain)


@pytest.mark.parametrize("of", ["quickstart", "groove_small"])
def test_searching_gives_the_same_objective(of, tmp_path):
    with MODES["x64"](), MODES["debug_nans"](), MODES["strict_promotion"]():
        found = crash.search(tmp_path / "there", of=of, generations=1)
    expected = crash.search(tmp_path / "here", of=of, generations=1)
    jax.tree.map(np.testing.assert_array_equal, found.objective, expected.objective)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found.objective))


@pytest.mark.parametrize("mode", ["x64", "debug_nans", "disable_jit"])
@pytest.mark.parametrize("name", ["ppo", "dpo", "mdpo", "lpo", "ta_lpo"])
def test_surrogates_are_in_the_precision_of_their_inputs(mode, name):
    progress = lo.Progress(jnp.float32(1), jnp.float32(2))
    expected = lo.load(name).surrogate(*np.float32([[0.1, -0.2], [1.0, -1.0]]), progress)
    with MODES[mode]():
        dtype = jnp.float64 if mode == "x64" else jnp.float32
        found = lo.load(name).surrogate(jnp.array([0.1, -0.2], dtype), jnp.array([1.0, -1.0], dtype), progress)
        assert found.dtype == dtype
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_legacy_keys_are_taken():
    key = jax.random.PRNGKey(0)
    jax.tree.map(np.testing.assert_array_equal, lo.LPO.create(key), lo.LPO.create(jax.random.key(0)))
    result = discover.train("ppo", total_steps=256, num_seeds=1, agent=SMALL)
    state = jax.tree.map(lambda x: x[0], result.state)
    returns = [result.agent.evaluate(result.task, state, k, num_episodes=2) for k in (key, jax.random.key(0))]
    np.testing.assert_array_equal(*returns)


@pytest.mark.parametrize("mode", MODES)
def test_playing_gives_the_same_bits(mode):
    result = discover.train("ppo", "CartPole-v1", total_steps=64, num_seeds=1, agent=SMALL)
    state = jax.tree.map(lambda x: x[0], result.state)
    play = lambda key: result.agent.evaluate(result.task, state, key, num_episodes=2, greedy=True)
    key = jax.random.key(0)
    expected = play(key)
    with plain_jax():  # what a user transforms runs under the user's modes
        np.testing.assert_array_equal(jax.jit(play)(key), expected)
        np.testing.assert_array_equal(jax.vmap(play)(key[None])[0], expected)
    with MODES[mode]():
        found = play(key)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "gridworld/small"])
def test_a_life_of_ones_own_is_in_float32(env):
    """Jitted by the user in double precision, in which gymnax steps its physics."""
    with jax.enable_x64(True):
        environment, params = envs.make(env)
        agent = Agent(environment, SMALL)
        live = jax.jit(lambda key: agent.train(lo.Mirror(), agent.task(params, 128), key, num_updates=2))
        state, returns = live(jax.random.key(0))
        assert {x.dtype for x in jax.tree.leaves((state.params, state.env.episodes, returns))} == {
            jnp.dtype("float32"),
            jnp.dtype("bool"),
        }
        assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state.params))


def test_the_settings_hold_again_afterwards():
    with contextlib.ExitStack() as stack:
        for mode in MODES.values():
            stack.enter_context(mode())
        with plain_jax():
            assert {name: getattr(jax.config, name) for name in PLAIN} == PLAIN
        assert jax.config.jax_enable_x64
        assert jax.config.jax_debug_nans
        assert jax.config.jax_numpy_dtype_promotion == "strict"
