"""The environments keep one contract, and the probes have the values they claim."""

import copy
import pickle

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.spaces import Box, Discrete, Space, Tuple

import envs

OFFLINE = [name for name in gymnax.registered_envs if name != "MNISTBandit-bsuite"]
PROBES = [name for name in envs.available() if name.startswith("probe/")]


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(envs, "_registered", {})


def test_an_environment_of_ones_own_goes_by_its_name(registry):
    built = []

    def build(**options):
        built.append(options)
        return envs.Uniform(gymnax.make("CartPole-v1")[0])

    envs.register("Mine-v0", build)
    assert "Mine-v0" in envs.available()
    env, _ = envs.make("Mine-v0")
    assert envs.make("Mine-v0")[0] is env
    assert envs.make("Mine-v0", size=3)[0] is not env
    assert built == [{}, {"size": 3}]
    envs.register("Mine-v0", build)
    assert envs.make("Mine-v0")[0] is not env
    with pytest.raises(ValueError, match="did you mean 'Mine-v0'"):
        envs.make("Mine-v1")


def test_a_second_environment_of_one_name_is_refused_unless_it_shall_replace_the_first(registry):
    class Mine(envs.Environment):
        size = 1

    envs.register("Mine-v0", Mine)
    with pytest.raises(
        ValueError, match=r"two environments have the name 'Mine-v0': .*test_envs.py, line .*replace=True"
    ):
        envs.register("Mine-v0", gymnax.environments.CartPole)
    assert envs._registered["Mine-v0"] is Mine
    envs.register("Mine-v0", gymnax.environments.CartPole, replace=True)
    assert envs.make("Mine-v0")[0].num_actions == 2
    envs.register("One-v0", gymnax.environments.CartPole())
    envs.register("One-v0", gymnax.environments.CartPole())
    with pytest.raises(ValueError, match="two environments have the name 'One-v0'"):
        envs.register("One-v0", gymnax.environments.Pendulum())


def test_what_builds_no_environment_is_named(registry):
    envs.register("Pair-v0", lambda: gymnax.make("CartPole-v1"))
    with pytest.raises(
        ValueError, match=r"test_envs.py, line .*: 'Pair-v0' returns a tuple, and must return an environment"
    ):
        envs.make("Pair-v0")


@pytest.mark.parametrize(
    "name", ["CartPole-v1", "brax/mine", "gridworld/mine", "probe/action", "MNISTBandit-bsuite", ""]
)
def test_a_name_that_is_taken_is_refused(registry, name):
    with pytest.raises(ValueError, match="taken, or belongs to a family"):
        envs.register(name, lambda: None)


@pytest.mark.parametrize("name", OFFLINE + PROBES)
def test_keeps_the_contract(name):
    env, params = envs.make(name)
    assert env.name == name
    assert params.max_steps_in_episode.dtype == np.int32
    envs.check(env, params)


def test_every_gymnax_name_is_in_the_table_or_left_out():
    ours = {name for name in envs.available() if "/" not in name}
    assert ours == set(OFFLINE)
    assert len(set(envs.available())) == len(envs.available())


OWN = "module:Name is the form for one of your own."


@pytest.mark.parametrize(
    ("name", "kwargs", "sentence"),
    [
        (
            "CartPol-v1",
            {},
            f"Unknown environment 'CartPol-v1'; did you mean 'CartPole-v1'? envs.available() lists them all; {OWN}",
        ),
        ("§", {}, f"Unknown environment '§'. envs.available() lists them all; {OWN}"),
        (
            "brax/antt",
            {},
            f"Unknown environment 'brax/antt'; did you mean 'brax/ant'? envs.available() lists them all; {OWN}",
        ),
        (
            "brax/ant@sprung",
            {},
            "Unknown backend 'sprung' for 'brax/ant'; did you mean 'spring'? "
            "The backends are spring, generalized, positional, mjx.",
        ),
        (
            "brax/ant@mjx",
            {"backend": "spring"},
            "'brax/ant@mjx' and backend='spring' ask for two different backends.",
        ),
        (
            "MNISTBandit-bsuite",
            {},
            "'MNISTBandit-bsuite' is left out: it downloads MNIST when it is built; with a "
            "network, envs.Uniform(gymnax.make('MNISTBandit-bsuite')[0]) builds it.",
        ),
    ],
)
def test_names_that_make_refuses(name, kwargs, sentence):
    with pytest.raises(ValueError, match=r".") as error:
        envs.make(name, **kwargs)
    assert str(error.value) == sentence


def test_the_same_name_and_options_are_the_same_object():
    assert envs.make("CartPole-v1")[0] is envs.make("CartPole-v1")[0]
    assert envs.make("DeepSea-bsuite", size=4)[0] is envs.make("DeepSea-bsuite", size=4)[0]
    assert envs.make("DeepSea-bsuite", size=4)[0] is not envs.make("DeepSea-bsuite")[0]
    holes = ["SH", "FG"]  # a list is no key of a dict, yet equal lists are the same option
    lake = envs.make("FrozenLake-misc", desc=holes)[0]
    assert lake is envs.make("FrozenLake-misc", desc=list(holes))[0]


def _pickled(env):
    return pickle.loads(pickle.dumps(env))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, _pickled])
@pytest.mark.parametrize("name", ["CartPole-v1", "probe/constant"])
def test_copies_step_like_the_original(name, duplicate):
    env, params = envs.make(name)
    twin = duplicate(env)
    assert twin.name == env.name
    key = jax.random.key(0)
    _, state = env.reset(key, params)
    _assert_equal(twin.step(key, state, 1, params), env.step(key, state, 1, params))


@pytest.mark.parametrize("name", ["CartPole-v1", "Breakout-MinAtar", "DeepSea-bsuite"])
def test_dynamics_are_those_of_gymnax(name):
    env, params = envs.make(name)
    raw, raw_params = gymnax.make(name)
    key = jax.random.key(7)
    obs, state = env.reset(key, params)
    raw_obs, raw_state = raw.reset(key, raw_params)
    _assert_equal(obs, raw_obs)
    episodes = 0
    for step_key in jax.random.split(key, 60):
        action = jax.random.randint(step_key, (), 0, raw.num_actions)
        *out, info = env.step(step_key, state, action, params)
        *raw_out, raw_info = raw.step(step_key, raw_state, action, raw_params)
        _assert_equal(out, raw_out)
        _assert_equal(info["final_observation"], raw_info["final_observation"])
        state, raw_state = out[1], raw_out[1]
        episodes += bool(out[3] | out[4])
    assert episodes > 0  # the comparison has crossed an auto-reset


def test_a_time_limit_truncates_and_keeps_the_last_observation():
    env, params = envs.make("CartPole-v1")
    params = params.replace(max_steps_in_episode=5)
    key = jax.random.key(0)
    obs, state = env.reset(key, params)
    for time, action in enumerate([0, 1, 0, 1, 0], start=1):
        unreset = env.step_env(key, state, action, params)[0]
        obs, state, _, terminated, truncated, info = env.step(key, state, action, params)
        assert (bool(terminated), bool(truncated)) == (False, time == 5)
        assert info["discount"] == 1.0
        np.testing.assert_allclose(info["final_observation"], unreset, rtol=1e-6)
    assert not np.array_equal(info["final_observation"], obs)
    assert np.abs(obs).max() <= 0.05  # CartPole starts within 0.05 of upright
    assert state.time == 0


def test_a_death_terminates():
    env, params = envs.make("CartPole-v1")
    key = jax.random.key(0)
    _, state = env.reset(key, params)
    for _ in range(20):  # pushed one way only, the pole falls within about ten steps
        _, state, _, terminated, truncated, info = env.step(key, state, 1, params)
        if terminated:
            break
    assert terminated
    assert not truncated
    assert info["discount"] == 0.0


def test_frozen_lake_shows_its_position_one_hot():
    env, params = envs.make("FrozenLake-misc", is_slippery=False)
    obs, state = env.reset(jax.random.key(0), params)
    np.testing.assert_array_equal(obs, np.eye(16)[0])
    obs, *_ = env.step(jax.random.key(0), state, 2, params)  # right, from 0 to 1
    np.testing.assert_array_equal(obs, np.eye(16)[1])


class ScalarGame(gymnax.environments.environment.Environment):
    """Scalar observation and scalar action, integer reward: as odd as gymnax allows."""

    def step_env(self, key, state, action, params):
        state = state.replace(time=state.time + 1)
        return action * 2, state, 3, state.time > 1, {}

    def reset_env(self, key, params):
        return jnp.float32(0), gymnax.environments.environment.EnvState(time=0)

    def observation_space(self, params):
        return Box(-2, 2, ())

    def action_space(self, params):
        return Box(-1, 1, ())


def test_scalars_become_vectors():
    env = envs.Uniform(ScalarGame(), name="scalar")
    params = env.default_params.replace(max_steps_in_episode=np.int32(10))
    envs.check(env, params)
    key = jax.random.key(0)
    _, state = env.reset(key, params)
    obs, _, reward, *_ = env.step(key, state, jnp.array([0.25]), params)
    assert (obs.shape, obs[0], reward) == ((1,), 0.5, 3.0)
    assert env.action_space(params).shape == (1,)


def test_uniform_refuses_what_it_cannot_convert():
    class Pair(ScalarGame):
        def observation_space(self, params):
            return Tuple([Discrete(2), Space()])

    env = envs.Uniform(Pair())
    with pytest.raises(
        ValueError, match=r"Pair has Tuple.* as observation space: it must be Discrete, MultiDiscrete, a Box"
    ):
        env.reset(jax.random.key(0), env.default_params)


def test_time_limits_vmap():
    env, params = envs.make("CartPole-v1")
    limits = jax.vmap(lambda limit: params.replace(max_steps_in_episode=limit))(jnp.arange(1, 4))
    axes = jax.tree.map(lambda _: 0, limits)
    _, state = jax.vmap(env.reset, in_axes=(None, axes))(jax.random.key(0), limits)
    step = jax.vmap(env.step, in_axes=(None, 0, None, axes))
    assert step(jax.random.key(0), state, 0, limits)[4].tolist() == [True, False, False]


class Broken(envs.probes.Constant):
    """A sound probe; each case below breaks one thing in it."""


def _with(**methods):
    return type("Broken", (Broken,), {"name": "broken", **methods})()


def _step_with(change):
    def step(self, key, state, action, params=None):
        return change(*Broken.step(self, key, state, action, params))

    return step


@pytest.mark.parametrize(
    ("methods", "sentence"),
    [
        (
            {"show": lambda self, state: jnp.ones(2)},
            r"gives the observation of reset as float32\[2\], not float32\[1\]",
        ),
        (
            {"show": lambda self, state: {"x": jnp.ones(1)}},
            r"gives the observation of reset as a dict, not float32\[1\]",
        ),
        (
            {"show": lambda self, state: jnp.array([jnp.nan])},
            "gives a observation that is not finite",
        ),
        (
            {"reward": lambda self, state, action: jnp.int32(1)},
            r"gives reward as int32\[\], not float32\[\]",
        ),
        (
            {"observation_space": lambda self, params: Box(0, 1, ())},
            "needs a Discrete, a float32 Box of rank >= 1 or a uint8 Box of rank 3 as observation space",
        ),
        (
            {"action_space": lambda self, params: Box(0, 1, (2, 2))},
            "needs a Discrete, a MultiDiscrete or a float32 Box of rank 1 as action space",
        ),
        (
            {"is_truncated": lambda self, state, params: jnp.float32(0)},
            r"gives truncated as float32\[\], not bool\[\]",
        ),
        (
            {"is_truncated": lambda self, state, params: jnp.bool_(False)},
            "does not truncate at params.max_steps_in_episode = 1 step",
        ),
        (
            {"step": _step_with(lambda obs, state, *out: (obs, state.replace(time=0.0), *out))},
            r"has state.time int32\[\] at reset and float32\[\] \(weak\) after a step",
        ),
        (
            {"step": _step_with(lambda *out: out[:5])},
            "returns 5 values from step; the contract is 6",
        ),
        (
            {"step": _step_with(lambda *out: (*out[:5], {}))},
            "leaves discount, terminated, truncated, final_observation out of info",
        ),
        (
            {"step": _step_with(lambda *out: (*out[:5], out[5] | {"discount": jnp.float32(1)}))},
            "gives a discount that is not 0 at termination and 1 elsewhere",
        ),
        (
            {"step": _step_with(lambda *out: (*out[:5], out[5] | {"terminated": out[4]}))},
            "gives info\\['terminated'\\] unlike the terminated flag",
        ),
        (
            {"length": 3, "step": _step_with(lambda obs, *out: (obs + 1, *out))},
            "gives a final observation that is not the observation, although no episode ended",
        ),
    ],
)
def test_check_names_what_is_broken(methods, sentence):
    env = _with(**methods)
    with pytest.raises(AssertionError, match="^broken " + sentence):
        envs.check(env, env.default_params)


# The best action at an observation, written by hand.
BEST = {
    "probe/action": lambda obs: 0,
    "probe/observation_action": lambda obs: int(obs[0] == 1),
    "probe/continuous": lambda obs: obs / 2,
    "probe/image": lambda obs: int(obs[2, 2, 1] == 1),
}


@pytest.mark.parametrize("name", PROBES)
def test_probe_values_are_the_discounted_sums_of_rewards(name):
    env, params = envs.make(name)
    gamma, seen = 0.8, set()
    for seed in range(6):
        with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
            observations, rewards = _play(env, params, seed, BEST.get(name, lambda obs: 0))
        for time, obs in enumerate(observations[:5]):
            total = sum(gamma**k * reward for k, reward in enumerate(rewards[time:]))
            assert env.value(obs, gamma) == pytest.approx(total, abs=1e-5)
            seen.add(obs.tobytes())
        batch = np.stack([[observations[0]] * 2] * 3)
        np.testing.assert_array_equal(env.value(batch, gamma), np.full((3, 2), env.value(observations[0], gamma)))
    by_hand = {"constant": 1, "action": 1, "truncation": 1, "termination": 5}
    assert len(seen) == by_hand.get(name.removeprefix("probe/"), 2)


def _play(env, params, seed, policy, steps=100):
    """Observations and rewards until termination, past any time limit."""
    key = jax.random.key(seed)
    obs, state = env.reset_env(key, params)
    observations, rewards = [], []
    for _ in range(steps):
        observations.append(np.asarray(obs))
        action = policy(observations[-1])
        obs, state, reward, terminated, _ = env.step_env(key, state, action, params)
        rewards.append(float(reward))
        if terminated:
            break
    return observations, rewards


def test_probe_values_by_hand():
    value = lambda name, obs: envs.make(name)[0].value(jnp.asarray(obs, jnp.float32), 0.9)
    assert value("probe/truncation", [1]) == pytest.approx(10)
    np.testing.assert_allclose(value("probe/discount", np.eye(2)), [0.9, 1])
    np.testing.assert_allclose(value("probe/termination", np.eye(5)), [4.0951, 3.439, 2.71, 1.9, 1], rtol=1e-6)


def test_the_two_clocks_differ_only_in_the_flag():
    flags = {}
    for name in ("probe/truncation", "probe/termination"):
        env, params = envs.make(name)
        key = jax.random.key(0)
        _, state = env.reset(key, params)
        flags[name] = []
        for _ in range(6):
            _, state, reward, terminated, truncated, _ = env.step(key, state, 0, params)
            assert reward == 1
            flags[name].append("T" if terminated else "t" if truncated else ".")
    assert "".join(flags["probe/truncation"]) == "....t."
    assert "".join(flags["probe/termination"]) == "....T."


def test_worse_actions_are_worth_less():
    for name, worse, expected in (
        ("probe/action", lambda obs: 1, -1.0),
        ("probe/observation_action", lambda obs: int(obs[0] != 1), -1.0),
        ("probe/image", lambda obs: int(obs[2, 2, 1] != 1), -1.0),
        ("probe/continuous", lambda obs: -obs / 2, -1.0),
    ):
        _, rewards = _play(*envs.make(name), 0, worse)
        assert rewards == [expected]


def _assert_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)
