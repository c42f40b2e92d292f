"""Seaquest in small buffers is gymnax's Seaquest, frame for frame."""

from functools import cache, partial
from unittest import mock

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.minatar.seaquest import MAX_ENTITIES, MinSeaquest

import envs
from envs.minatar.seaquest import BUFFERS, Seaquest

THEIRS, OURS = MinSeaquest(), Seaquest()
SEEDS = (0, 1)
B, T = 36, 250
NOOP, LEFT, UP, RIGHT, DOWN, FIRE = range(6)
LATE = {"e_spawn_speed": 1, "e_spawn_timer": 0, "move_speed": 2, "ramp_index": 19, "diver_count": 6, "oxygen": 40}
DRAWN, SUBS, FISH = -1.0, 0.1, 0.9  # what the draw of the kind of enemy is; -1: as it comes


def padded(state):
    pad = lambda buffer: np.pad(buffer, ((0, 0), (0, 0), (0, MAX_ENTITIES - buffer.shape[2]), (0, 0)))
    return state.replace(**{name: pad(getattr(state, name)) for name in BUFFERS})


def scenarios(seed):
    """[T, B] actions; [B] late in the ramp; [B] ending with the episode, or played on; [B] kinds of enemy."""
    rng = np.random.default_rng(seed)
    actions = rng.integers(0, 6, (T, B))
    actions[:, 4:8] = rng.choice([NOOP, LEFT, RIGHT, FIRE], (T, 4))  # at the surface, where nothing is hit
    actions[:, 16:20] = NOOP
    actions[:, 20:28] = rng.choice([LEFT, RIGHT, DOWN, UP, FIRE, FIRE, FIRE], (T, 8))
    actions[:, 24:26] = NOOP
    time = np.arange(T)[:, None] - np.arange(28, B) * 7 % 30  # surfaces in every other frame, from different ones on
    actions[:, 28:] = np.where(time < 0, NOOP, np.where(time % 2, UP, DOWN))
    env = np.arange(B)
    return actions, (env >= 12) & (env < 28), env < 8, np.where(env < 20, DRAWN, np.where(env % 2, SUBS, FISH))


@cache
def player(env):
    """A compiled function (keys and actions [T, B], late, ends, kinds) -> obs, states, rewards and ends [T, B]."""
    params = env.default_params
    uniform = jax.random.uniform

    def start(late):
        _, state = env.reset_env(jax.random.key(0), params)
        return state.replace(**{name: jnp.where(late, value, getattr(state, name)) for name, value in LATE.items()})

    def step(state, first, key, action, ends, kind):
        rigged = lambda key, shape: jnp.where(kind == DRAWN, uniform(key, shape), jnp.stack([0.1, kind]))
        with mock.patch.object(jax.random, "uniform", rigged):
            obs, state, reward, done, _ = env.step_env(key, state, action, params)
        on = state.replace(oxygen=jnp.where(state.oxygen < 0, 200, state.oxygen), terminal=False)
        after = jax.tree.map(lambda new, old: jnp.where(done & ends, new, old), first, on)
        return after, (obs, state, reward, done)

    @jax.jit
    def play(keys, actions, late, ends, kinds):
        firsts = jax.vmap(start)(late)
        each = lambda states, xs: jax.vmap(step)(states, firsts, *xs, ends, kinds)
        return jax.lax.scan(each, firsts, (keys, actions))[1]

    return play


@cache
def played(env, seed):
    actions, *rest = scenarios(seed)
    return jax.device_get(player(env)(jax.random.split(jax.random.key(seed), (T, B)), actions, *rest))


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_every_step_is_gymnax_own(seed):
    theirs = played(THEIRS, seed)
    obs, state, reward, done = played(OURS, seed)
    paths = jax.tree_util.tree_flatten_with_path(theirs)[0]
    for (path, expected), value in zip(paths, jax.tree.leaves((obs, padded(state), reward, done)), strict=True):
        assert value.dtype == expected.dtype, path
        np.testing.assert_array_equal(value, expected, err_msg=jax.tree_util.keystr(path))


@pytest.mark.slow
def test_the_steps_compared_go_everywhere():
    _, states, reward, done = played(OURS, 0)
    assert (reward > 0).sum() > 100
    assert reward.max() > 1  # six divers brought up
    assert done[:, :8].sum() > 20
    assert states.oxygen.min() < 0
    ramped = states.ramp_index[:, 28:]
    assert (ramped[0].max(), ramped[-1].min()) == (0, 19)


def test_the_back_of_the_sub_is_drawn_where_gymnax_draws_it():
    """Also off the board, in columns -1 and 10, where no game but a state made by hand brings it."""
    x, right = (grid.ravel() for grid in np.meshgrid(np.arange(10), [False, True]))

    def drawn(env, x, right):
        _, state = env.reset_env(jax.random.key(0), env.default_params)
        return env.get_obs(state.replace(sub_x=x, sub_or=right))

    ours, theirs = (jax.jit(jax.vmap(partial(drawn, env)))(x, right) for env in (OURS, THEIRS))
    np.testing.assert_array_equal(ours, theirs)


def test_the_buffers_never_fill():
    peak = {name: 0 for name in BUFFERS}
    for seed in SEEDS:
        _, states, *_ = played(OURS, seed)
        for name, (count, _) in BUFFERS.items():
            peak[name] = max(peak[name], getattr(states, count).max())
    # One enemy a frame, each there after 29 frames; subs fire into 6 + 2 of them.
    assert peak == {"f_bullets": 2, "e_bullets": 8, "e_fish": 29, "e_subs": 29, "divers": 2}
    assert all(peak[name] < slots for name, (_, slots) in BUFFERS.items())


def test_make_builds_it_with_its_options():
    env, params = envs.make("Seaquest-MinAtar", use_minimal_action_set=False)
    assert isinstance(env.env, Seaquest)
    assert env.num_actions == 6
    _, state = env.reset(jax.random.key(0), params.replace(max_oxygen=150))
    assert state.oxygen == 150
    space = env.env.state_space(params)
    for name, (count, slots) in BUFFERS.items():
        assert space.spaces[name].shape == getattr(state, name).shape
        assert space.spaces[count].n == slots + 1


@pytest.mark.parametrize(
    ("name", "value", "span"), [("shot_cool_down", 4, "5 to 262143"), ("diver_move_interval", 6, "0 to 5")]
)
def test_parameters_that_could_overflow_a_buffer_are_refused(name, value, span):
    with pytest.raises(ValueError, match=f"^{name} must be from {span}, .* and is {value}: .* takes any.$"):
        envs.make("Seaquest-MinAtar")[1].replace(**{name: value})


def test_gymnax_parameters_are_refused():
    env, _ = envs.make("Seaquest-MinAtar")
    _, params = gymnax.make("Seaquest-MinAtar")
    with pytest.raises(ValueError, match=r"its own parameters, env.default_params, and these are gymnax\."):
        env.reset(jax.random.key(0), params)
