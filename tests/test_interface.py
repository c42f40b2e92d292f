"""What an environment states of itself is checked, has defaults, and reaches agents and searches."""

import copy
import pickle

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments.environment import Environment as GymnaxEnvironment
from gymnax.environments.spaces import Box, Dict, Discrete

import discover
import envs
from discover.agents.agent import Agent
from discover.agents.setups import CLASSIC
from discover.plots.worlds import grid_world
from discover.searches.curriculum import Tasks
from envs.interface import DEFAULTS, Capabilities, Named, capabilities

TINY = discover.AgentConfig(num_envs=2, num_steps=4, num_epochs=1, num_minibatches=1, hidden=(4,))


@struct.dataclass
class Slope:
    gain: jax.Array
    max_steps_in_episode: jax.Array


@struct.dataclass
class Position:
    cell: jax.Array
    time: jax.Array


class Corridor(envs.Environment):
    """Five cells, numbered. Action 1 moves right, for a reward of `gain`; episodes last four steps."""

    name = "corridor"
    num_actions = 2
    lifetimes = envs.Lifetimes(80, 800, unit=8)

    @property
    def default_params(self):
        return Slope(jnp.float32(1.0), jnp.int32(4))

    def sample_level(self, key):
        return Slope(jax.random.uniform(key, minval=1.0, maxval=2.0), jnp.int32(4))

    def optimal_return(self, params):
        return params.gain * params.max_steps_in_episode

    def reset_env(self, key, params):
        return jnp.int32(0), Position(jnp.int32(0), jnp.int32(0))

    def step_env(self, key, state, action, params):
        state = Position(jnp.minimum(state.cell + action, 4), state.time + 1)
        reward = jnp.where(action == 1, params.gain, 0.0)
        return state.cell, state, reward, jnp.bool_(False), {"discount": jnp.float32(1.0)}

    def observation_space(self, params):
        return Discrete(5)

    def action_space(self, params=None):
        return Discrete(2)


class Lit(Corridor):
    """The same, seen as five lamps."""

    name = "lit"
    binary_obs = True

    def reset_env(self, key, params):
        cell, state = super().reset_env(key, params)
        return jax.nn.one_hot(cell, 5), state

    def step_env(self, key, state, action, params):
        cell, *rest = super().step_env(key, state, action, params)
        return jax.nn.one_hot(cell, 5), *rest

    def observation_space(self, params):
        return Box(0.0, 1.0, (5,), jnp.float32)


class Nested(Lit):
    """The same, in a Dict."""

    name = "nested"
    expensive_reset = True

    def reset_env(self, key, params):
        obs, state = super().reset_env(key, params)
        return {"lamps": obs}, state

    def step_env(self, key, state, action, params):
        obs, *rest = super().step_env(key, state, action, params)
        return {"lamps": obs}, *rest

    def observation_space(self, params):
        return Dict({"lamps": Box(0.0, 1.0, (5,), jnp.float32)})


class Foreign(GymnaxEnvironment):
    """An environment of gymnax's interface alone."""

    inner = Corridor()
    name = "foreign"
    default_params = inner.default_params
    reset_env, step_env = inner.reset_env, inner.step_env
    observation_space, action_space = inner.observation_space, inner.action_space
    colour = "red"


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    for registry in ("_registered", "_given", "_built"):
        monkeypatch.setattr(envs, registry, dict(getattr(envs, registry)))


@pytest.mark.parametrize("kind", [Corridor, Lit])
def test_an_environment_with_all_capabilities_keeps_the_contract(kind):
    env, params = envs.make(kind())
    assert isinstance(env, kind)
    envs.check(env, params, num_steps=5)


def test_defaults_are_those_of_an_environment_without_capabilities():
    assert DEFAULTS == {
        "sample_level": None,
        "lifetimes": None,
        "optimal_return": None,
        "action_mask": None,
        "expensive_reset": False,
        "binary_obs": False,
    }


@pytest.mark.parametrize(
    "name", ["CartPole-v1", "Breakout-MinAtar", "Freeway-MinAtar", "Seaquest-MinAtar", "probe/image"]
)
def test_every_environment_of_ours_states_its_capabilities(name):
    env, _ = envs.make(name)
    assert capabilities(env) == DEFAULTS | {"binary_obs": name.endswith("-MinAtar")}
    assert env.num_states is None


def test_grid_worlds_state_their_states_levels_lifetimes_and_optimal_return():
    env, level = envs.make("gridworld/small_vrandlife")
    assert env.num_states == 36 * 2**3
    assert env.lifetimes == envs.Lifetimes(10 * 1280, 250 * 1280, unit=1280)
    assert env.optimal_return(level) == envs.gridworld.optimal_return(env, level)
    planes, _ = envs.make("gridworld/small", observation="planes")
    assert (planes.num_states, planes.optimal_return) == (None, None)
    assert planes.num_world_states == 36 * 2**3


def test_lifetimes_are_log_uniform_in_whole_units():
    lives = np.asarray(jax.vmap(envs.Lifetimes(8, 80, unit=8).sample)(jax.random.split(jax.random.key(0), 4000)))
    assert (lives % 8 == 0).all()
    assert (lives.min(), lives.max()) == (8, 80)
    assert (lives == 8).mean() == pytest.approx(
        np.log(2) / np.log(11), abs=0.03
    )  # one unit of [1, 11), of which ten are whole
    assert envs.Lifetimes(80, 80).sample(jax.random.key(1)) == 80


@pytest.mark.parametrize(
    ("bounds", "sentence"),
    [
        ((0, 8), "must satisfy 0 < unit <= shortest <= longest, .* and are unit 1, shortest 0, longest 8"),
        ((16, 8), "shortest 16, longest 8"),
        ((8, 18, 8), "must be multiples of unit, 8, and are 8 and 18"),
    ],
)
def test_lifetimes_that_cannot_be_are_refused(bounds, sentence):
    with pytest.raises(ValueError, match=sentence):
        envs.Lifetimes(*bounds)


def test_a_foreign_environment_gets_the_defaults_and_keeps_the_rest():
    original = Foreign()
    env, params = envs.make(original)
    assert isinstance(env, Capabilities)
    assert not isinstance(original, Capabilities)
    assert (env.name, env.colour, env.num_states, env.sample_level) == ("foreign", "red", 5, None)
    envs.check(env, params, num_steps=5)
    with pytest.raises(AttributeError, match="shape"):
        _ = env.shape


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_named_environment_can_be_copied(duplicate):
    twin = duplicate(Named(Corridor(), "mine"))
    assert (twin.name, twin.num_states) == ("mine", 5)
    assert twin.sample_level(jax.random.key(0)) == twin.env.sample_level(jax.random.key(0))


def test_a_registered_environment_has_the_name_it_is_registered_under():
    envs.register("hall", Corridor)
    env, params = envs.make("hall")
    assert env.name == "hall"
    assert env.lifetimes == Corridor.lifetimes
    assert env.optimal_return(params) == 4.0
    envs.register("maze", envs.gridworld.GridWorld(2, 2, 1))
    assert grid_world(envs.make("maze")[0]) == envs.gridworld.GridWorld(2, 2, 1)
    assert grid_world(env) is None


def test_an_object_of_a_family_of_ours_has_a_name_of_its_own():
    assert envs.name_of(envs.gridworld.GridWorld(2, 2, 1)) == "GridWorld"


def test_capabilities_survive_the_adaptation_of_spaces():
    env, params = envs.make(Nested())
    assert type(env).__name__ == "Uniform"
    assert (env.binary_obs, env.expensive_reset, env.lifetimes) == (True, True, Corridor.lifetimes)
    level = env.sample_level(jax.random.key(3))
    assert 1.0 <= level.gain <= 2.0
    assert env.optimal_return(level) == 4 * level.gain
    envs.check(env, params, num_steps=5)


def test_an_expensive_reset_is_drawn_once_for_each_environment():
    def starts(env):
        return Agent(envs.make(env)[0], TINY).num_starts

    assert (starts(Nested()), starts(Lit())) == (1, TINY.num_steps)


@pytest.mark.slow
def test_each_seed_has_its_own_level():
    result = discover.train("a2c", Corridor(), total_steps=80, num_seeds=3, num_evals=1, agent=TINY)
    gains = np.asarray(result.task.env_params.gain)
    assert len(set(gains.tolist())) == 3
    assert (result.returns[:, -1] <= 4 * gains).all()


def test_tasks_last_as_long_as_the_environment_says():
    tasks = Tasks(Agent(envs.make(Corridor())[0], TINY), None, 1e-3)
    lives = np.asarray(jax.vmap(tasks)(jax.random.split(jax.random.key(0), 500)).lifetime)
    assert tasks.longest == 100
    assert (lives % 8 == 0).all()
    assert lives.min() >= 80
    with pytest.raises(ValueError, match="total_steps must be given for foreign, which has no lifetimes of its own"):
        Tasks(Agent(envs.make(Foreign())[0], TINY), None, 1e-3)


def test_an_agent_refuses_an_environment_without_capabilities():
    with pytest.raises(TypeError, match=r"CartPole lacks them: envs.make\(env\) adds them"):
        Agent(gymnax.make("CartPole-v1")[0], TINY)


def test_an_environment_we_do_not_know_has_the_usual_setup_of_cartpole():
    assert discover.usual_setup("kites:Kite") == discover.usual_setup(Corridor()) == CLASSIC


class LevelOfAnotherType(Corridor):
    def sample_level(self, key):
        return Slope(jnp.int32(1), jnp.int32(4))


class LevelOfAnotherStructure(Corridor):
    def sample_level(self, key):
        return {"gain": jnp.float32(1.0)}


class LevelFromTheHost(Corridor):
    def sample_level(self, key):
        return Slope(jnp.float32(float(jax.random.uniform(key))), jnp.int32(4))


class OptimumOfIntegers(Corridor):
    def optimal_return(self, params):
        return params.max_steps_in_episode


class OptimumThatFails(Corridor):
    def optimal_return(self, params):
        return params.gian


FAULTS = [
    (type("A", (Corridor,), {"expensive_reset": 1}), r"has expensive_reset 1, and it must be True or False"),
    (type("B", (Corridor,), {"binary_obs": None}), r"has binary_obs None, and it must be True or False"),
    (type("C", (Corridor,), {"lifetimes": (80, 800)}), r"has the lifetimes \(80, 800\), and they must be envs.Lifetimes"),
    (type("D", (Corridor,), {"num_states": 6}), r"has num_states 6, and by its observation space .* it must be 5"),
    (type("E", (Lit,), {"num_states": 5}), r"has num_states 5, and by its observation space .* it must be None"),
    (type("F", (Corridor,), {"sample_level": 3}), r"has sample_level 3, and it must be a function of a key, or None"),
    (type("G", (Corridor,), {"optimal_return": 4.0}), r"has optimal_return 4.0, and it must be a function"),
    (
        LevelOfAnotherType,
        r"draws levels .gain int32\[\], .max_steps_in_episode int32\[\] with sample_level, and they must have the structure and "
        r"types of default_params, .gain float32\[\], .max_steps_in_episode int32\[\]",
    ),
    (LevelOfAnotherStructure, r"draws levels \['gain'\] float32\[\] with sample_level"),
    (LevelFromTheHost, r"has a sample_level that cannot be mapped over keys by jax.vmap \(ConcretizationTypeError"),
    (OptimumOfIntegers, r"gives optimal_return as int32\[\], not float32\[\]"),
    (OptimumThatFails, r"has an optimal_return that cannot be traced \(AttributeError: .*gian"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "sentence"), FAULTS)
def test_check_names_the_capability_that_is_broken(kind, sentence):
    env = kind()
    with pytest.raises(AssertionError, match=f"^{env.name} {sentence}"):
        envs.check(env, env.default_params)
    with pytest.raises(ValueError, match=f"test_interface.*: '{env.name}' {sentence}"):
        envs.make(env)


def test_check_gives_a_foreign_environment_the_defaults():
    envs.check(Foreign(), Foreign.default_params)


def test_check_wants_zeros_and_ones_where_observations_are_binary():
    class Dim(Lit):
        def reset_env(self, key, params):
            obs, state = super().reset_env(key, params)
            return obs / 2, state

    with pytest.raises(
        AssertionError, match=r"^lit has binary_obs, and gives an observation with numbers other than 0 and 1"
    ):
        envs.check(Dim(), Dim().default_params, num_steps=5)
