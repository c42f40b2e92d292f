"""Freeway with all cars moved at once is gymnax's Freeway, frame for frame."""

from functools import cache

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.minatar.freeway import MinFreeway

import envs
from envs.minatar.freeway import Freeway

ACTIONS = (True, False)  # MinAtar's minimal ones, or all six
THEIRS, OURS = ({minimal: env(minimal) for minimal in ACTIONS} for env in (MinFreeway, Freeway))
B, T = 32, 300
SEEDS = (0, 1)


@cache
def program(env):
    def play(params, key, keys, actions, row):
        obs, state = env.reset_env(key, params)

        def step(state, inputs):
            key, action = inputs
            obs, state, reward, done, info = env.step_env(key, state, action, params)
            return state, (obs, state, reward, done, info)

        return obs, jax.lax.scan(step, state.replace(pos=row), (keys, actions))[1]

    return jax.jit(jax.vmap(play, in_axes=(None, 0, 0, 0, 0)))


@cache
def played(env, seed):
    """First observation [B, ...], then observations, states, rewards and ends [B, T], from rows anywhere on the board."""
    rng = np.random.default_rng(seed)
    actions = rng.choice(3, (B, T), p=[0.2, 0.7, 0.1])
    actions[:4] = 1  # up all the way
    if env.num_actions == 6:  # nothing, up, down, or one without effect
        actions = np.where(rng.random((B, T)) < 0.8, 2 * actions, 2 * actions + 1)
    rows = rng.integers(1, 10, B)
    params = env.default_params.replace(player_speed=3 - 2 * seed)
    starts, steps = jax.random.split(jax.random.key(seed))
    keys = jax.random.split(starts, B), jax.random.split(steps, (B, T))
    return jax.device_get(program(env)(params, *keys, actions, rows))


@pytest.mark.slow
@pytest.mark.parametrize("minimal", ACTIONS)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_step_is_gymnax_own(seed, minimal):
    paths = jax.tree_util.tree_flatten_with_path(played(THEIRS[minimal], seed))[0]
    for (path, expected), value in zip(paths, jax.tree.leaves(played(OURS[minimal], seed)), strict=True):
        assert value.dtype == expected.dtype, path
        np.testing.assert_array_equal(value, expected, err_msg=jax.tree_util.keystr(path))


def test_the_steps_compared_go_everywhere():
    _, (_, state, reward, _, _) = played(OURS[True], 0)
    assert (reward > 0).sum() > 20
    fell = (np.diff(state.pos, axis=1) > 1) & (reward[:, 1:] == 0)  # back to the start without having won
    assert fell.sum() > 100
    assert set(np.abs(state.cars[..., 3]).ravel()) == {1, 2, 3, 4, 5}
    assert {0, 9} <= set(state.cars[..., 0].ravel())


def test_the_time_limit_is_no_death():
    env, params = envs.make("Freeway-MinAtar")
    assert isinstance(env.env, Freeway)
    _, state = env.reset(jax.random.key(0), params)
    state = state.replace(time=jnp.int32(params.max_steps_in_episode - 1))
    *_, terminated, truncated, _ = env.step(jax.random.key(1), state, jnp.int32(0), params)
    assert (bool(terminated), bool(truncated)) == (False, True)


def test_it_takes_gymnax_options_and_parameters():
    env, _ = envs.make("Freeway-MinAtar", use_minimal_action_set=False)
    assert env.num_actions == 6
    _, params = gymnax.make("Freeway-MinAtar")
    obs, _ = env.env.reset(jax.random.key(0), params)
    assert obs.shape == (10, 10, 7)
