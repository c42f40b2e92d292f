"""Nested spaces, products of choices, frames and environments as objects: adapted, refused in a sentence, and learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crash import LONG
from gymnax.environments.spaces import Box, Dict, Discrete, Tuple

import discover
import envs
import learned_objectives as lo
from discover.agents.distributions import MultiCategorical
from discover.agents.networks import make_networks
from discover.agents.setups import usual_setup
from envs.probes import Probe
from envs.spaces import flatten

SMALL = discover.AgentConfig(num_envs=16, num_steps=16, num_minibatches=2, learning_rate=5e-3, hidden=(32,))


class Nested(Probe):
    """The sign among other things, as a dict; an action is right where both of its choices say the sign."""

    name = "nested"

    def show(self, state):
        return {"sign": state.sign, "kind": jnp.int32(2), "pair": (jnp.zeros((2, 2)), state.time)}

    def reward(self, state, action):
        up = state.sign > 0
        right = {"hand": 2, "foot": 1}
        return jnp.mean(
            jnp.stack([jnp.where(up, action[k] == n, action[k] == 0) for k, n in right.items()]), dtype=jnp.float32
        )

    def observation_space(self, params):
        pair = Tuple((Box(0.0, 1.0, (2, 2)), Discrete(5)))
        return Dict({"sign": Box(-1.0, 1.0, ()), "kind": Discrete(3), "pair": pair})

    def action_space(self, params=None):
        return Dict({"hand": Discrete(3), "foot": Discrete(2)})


class Pair(Nested):
    name = "pair"

    def reward(self, state, action):
        return super().reward(state, {"hand": action[0], "foot": action[1]})

    def action_space(self, params=None):
        return Tuple((Discrete(3), Discrete(2)))


class Matrix(Probe):
    """The best action is a half in every entry."""

    name = "matrix"
    shape = (2, 1)

    def reward(self, state, action):
        assert action.shape == self.shape
        return 1.0 - ((action - 0.5) ** 2).mean()

    def action_space(self, params=None):
        return Box(-1.0, 1.0, self.shape)


class Scalar(Matrix):
    name = "scalar"
    shape = ()


class Frames(Probe):
    """84 x 84 bytes, whose left or right half is white: the action is to say which."""

    name = "frames"
    size = 84
    num_actions = 2

    def show(self, state):
        white = (jnp.arange(self.size) < self.size // 2) == (state.sign > 0)
        return jnp.broadcast_to(jnp.where(white, 255, 0).astype(jnp.uint8)[None, :, None], (self.size, self.size, 4))

    def reward(self, state, action):
        return jnp.float32(action == (state.sign > 0))

    def observation_space(self, params):
        return Box(0, 255, (self.size, self.size, 4), jnp.uint8)

    def action_space(self, params=None):
        return Discrete(2)


@pytest.fixture(autouse=True)
def forgotten():
    """What a test registers is gone after it."""
    registered, given = dict(envs._registered), dict(envs._given)
    yield
    envs._registered.clear()
    envs._registered.update(registered)
    envs._given.clear()
    envs._given.update(given)


def test_a_nested_observation_is_its_parts_one_after_another():
    env, params = envs.make(Nested())
    obs, _ = env.reset(jax.random.key(0), params)
    sign = obs[0]
    assert abs(sign) == 1
    np.testing.assert_array_equal(obs[1:], [0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0])  # kind 2 of 3; zeros; time 0 of 5
    assert env.observation_space(params).shape == (13,)


@pytest.mark.parametrize("kind", [Nested, Pair, Matrix, Scalar, Frames])
def test_what_is_adapted_keeps_the_contract(kind):
    env, params = envs.make(kind())
    envs.check(env, params, num_steps=3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Nested, Pair, Matrix, Scalar])
def test_agents_learn_it(kind):
    result = discover.train("ppo", kind(), total_steps=30_000, num_seeds=1, num_evals=4, agent=SMALL)
    assert result.returns[0, -1] > 0.9


@pytest.mark.slow
def test_large_frames_are_learned_as_bytes():
    config = discover.AgentConfig(
        num_envs=4, num_steps=4, num_epochs=2, num_minibatches=1, learning_rate=1e-3, hidden=(16,)
    )
    steps = 16 * (40 if LONG else 2)
    result = discover.train("ppo", Frames(), total_steps=steps, num_seeds=1, num_evals=1, agent=config)
    assert result.state.env.obs.dtype == jnp.uint8
    convolutions = [x.shape for x in jax.tree.leaves(result.state.params["actor"]) if x.ndim == 5]  # a seed, and four
    assert convolutions == [(1, 8, 8, 4, 32), (1, 4, 4, 32, 64), (1, 3, 3, 64, 64)]  # Mnih et al. 2015
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(result.state.params))
    if LONG:  # without optimisations of the compiler these convolutions take ten minutes
        assert result.returns[0, -1] > 0.8


@pytest.mark.slow
def test_a_rule_of_lpg_trains_a_product_of_choices():
    config = discover.AgentConfig(num_envs=4, num_steps=8, num_epochs=1, num_minibatches=1)
    result = discover.train("lpg", Pair(), total_steps=64, num_seeds=1, agent=config)
    assert np.isfinite(result.returns[0, -1])


def test_a_product_of_categoricals_is_that_of_numpy():
    rng, sizes = np.random.default_rng(0), (3, 2, 4)
    logits, other = rng.normal(size=(2, 5, 9))
    action = np.stack([rng.integers(0, n, 5) for n in sizes], axis=-1)

    def split(x):
        probs = [np.exp(part) for part in np.split(x, [3, 5], axis=-1)]
        return [p / p.sum(-1, keepdims=True) for p in probs]

    p, q = split(logits), split(other)
    policy = MultiCategorical(jnp.asarray(logits, jnp.float32), sizes)
    log_prob = sum(np.log(part[np.arange(5), action[:, k]]) for k, part in enumerate(p))
    entropy = -sum((part * np.log(part)).sum(-1) for part in p)
    kl = sum((a * np.log(a / b)).sum(-1) for a, b in zip(p, q, strict=True))
    np.testing.assert_allclose(policy.log_prob(action), log_prob, rtol=1e-5)
    np.testing.assert_allclose(policy.entropy(), entropy, rtol=1e-5)
    np.testing.assert_allclose(policy.kl(MultiCategorical(jnp.asarray(other, jnp.float32), sizes)), kl, rtol=1e-4)
    np.testing.assert_array_equal(policy.mode(), np.stack([part.argmax(-1) for part in p], axis=-1))


def test_a_product_of_categoricals_samples_its_probabilities():
    policy = MultiCategorical(jnp.log(jnp.array([0.2, 0.8, 0.5, 0.25, 0.25])), (2, 3))
    noise = policy.noise(jax.random.key(0), (40_000,), 5)
    action = np.asarray(jax.vmap(policy.sample)(noise))
    np.testing.assert_allclose([(action[:, 0] == k).mean() for k in range(2)], [0.2, 0.8], atol=0.01)
    np.testing.assert_allclose([(action[:, 1] == k).mean() for k in range(3)], [0.5, 0.25, 0.25], atol=0.01)
    joint = ((action[:, 0] == 1) & (action[:, 1] == 0)).mean()
    np.testing.assert_allclose(joint, 0.4, atol=0.01)  # independent


class Six(Probe):
    name = "six"

    def step_env(self, key, state, action, params):
        return (*super().step_env(key, state, action, params), {})


class Strange(Probe):
    name = "strange"

    def action_space(self, params=None):
        return Tuple((Discrete(2), Box(0.0, 1.0, (1,))))


class Altered(Probe):
    """A probe, some of whose methods are replaced."""

    def __init__(self, name, **methods):
        self.__dict__ |= {"name": name} | methods


def stepped(**changes):
    """step_env of a probe, with another state, reward or end."""

    def step_env(key, state, action, params):
        obs, state, reward, terminated, info = Probe().step_env(key, state, action, params)
        told = {"state": state, "reward": reward, "terminated": terminated} | {k: f() for k, f in changes.items()}
        return obs, told["state"], told["reward"], told["terminated"], info

    return step_env


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        (Altered("none", step_env=lambda *_: None), "step_env of 'none' returns None, and must return 5"),
        (
            Altered("vector", step_env=stepped(reward=lambda: jnp.ones(1))),
            r"returns reward float32\[1\] and terminated bool\[\]: both must be scalars",
        ),
        (
            Altered("float", step_env=stepped(terminated=lambda: jnp.float32(1))),
            "terminated float32.*, and it must be bool",
        ),
        (Altered("state", step_env=stepped(state=lambda: jnp.zeros(3))), "a state of another structure than reset_env"),
        (
            Altered("shape", observation_space=lambda params: Box(-1.0, 1.0, (7,))),
            r"'shape' returns observations float32.*, and its observation_space has the shape \(7,\)",
        ),
        (
            Altered(
                "key",
                observation_space=lambda params: Dict({"far": Box(-1.0, 1.0, (1,))}),
                show=lambda state: {"near": 0.0},
            ),
            "an observation lacks 'far', which its Dict space has; it has 'near'",
        ),
        (Altered("empty", action_space=lambda params=None: Box(-1.0, 1.0, (0,))), "as action space: agents act in"),
        (Altered("nothing", observation_space=lambda params: Dict({})), "as observation space: it must be Discrete"),
        (Six(), "step_env of 'six' returns 6 values, and must return 5: observation, state, reward, terminated, info"),
        (
            Strange(),
            "strange has Tuple.* as action space: agents act in a Discrete space, a Box, MultiDiscrete, or a Dict or Tuple",
        ),
    ],
)
def test_what_cannot_be_adapted_is_refused(env, sentence):
    with pytest.raises(ValueError, match=sentence):
        discover.train("ppo", env, total_steps=10_000, num_seeds=1)


class Bounded(Matrix):
    """Its bounds are made where they are asked for, with a number for each entry."""

    name = "bounded"

    def action_space(self, params=None):
        return Box(-jnp.ones(self.shape), jnp.full(self.shape, 3.0), self.shape)


def test_bounds_of_a_matrix_go_with_its_entries():
    env, params = envs.make(Bounded())
    with jax.check_tracer_leaks():
        space = jax.jit(lambda: env.action_space(params).high.sum())
    assert space() == 6.0
    discover.train("ppo", Bounded(), total_steps=1024, num_seeds=1)


def test_bytes_in_a_nested_observation_are_divided_by_255():
    space = Dict({"frame": Box(0, 255, (2, 2), jnp.uint8), "speed": Box(-1.0, 1.0, (1,))})
    frame = jnp.array([[0, 51], [102, 255]], jnp.uint8)
    flat = flatten(space, {"frame": frame, "speed": jnp.array([3.0])})
    np.testing.assert_allclose(flat, [0.0, 0.2, 0.4, 1.0, 3.0])


def test_frames_without_a_channel_axis_get_one():
    env, params = envs.make(Altered("flat", observation_space=lambda params: Box(0, 255, (4, 4), jnp.uint8),
                                    show=lambda state: jnp.zeros((4, 4), jnp.uint8)))  # fmt: skip
    obs, _ = env.reset_env(jax.random.key(0), params)
    assert (obs.shape, obs.dtype) == ((4, 4, 1), jnp.uint8) == (env.observation_space(params).shape, jnp.uint8)


def test_objects_and_results_on_disk_do_not_go_together(tmp_path):
    with pytest.raises(ValueError, match="is an object, whose name says nothing to another process: register it"):
        discover.evaluate(["ppo"], [Pair()], total_steps=1024, num_seeds=2, out=tmp_path / "results")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("given", ["CartPole-v1", (Pair(),)])
def test_a_recipe_takes_names_of_environments(given):
    with pytest.raises(ValueError, match="envs must be a tuple of names"):
        discover.Recipe(envs=given)


def test_an_object_of_a_known_environment_has_its_setup():
    import gymnax

    assert usual_setup(gymnax.make("Pendulum-v1")[0]) == usual_setup("Pendulum-v1")


def test_what_is_no_environment_is_refused():
    with pytest.raises(
        TypeError, match="expected the name of an environment, or an environment of gymnax's interface, and got 3"
    ):
        discover.train("ppo", 3)
    with pytest.raises(ValueError, match="build must return an environment, or be one, and is a int"):
        envs.register("Three", 3)


def test_an_instance_may_be_registered():
    kite = Pair()
    envs.register("Kite", kite)
    assert envs.make("Kite")[0].env is kite


@pytest.mark.slow
def test_an_object_goes_where_a_name_goes():
    import gymnax

    cartpole, _ = gymnax.make("CartPole-v1")
    config = discover.AgentConfig(num_envs=4, num_steps=16, hidden=(8,))
    mine = discover.train("ppo", cartpole, total_steps=128, num_seeds=2, agent=config)
    assert envs.name_of(cartpole) == envs.name_of(cartpole) == "CartPole-v1 (2)"
    found = discover.evaluate(["ppo"], [cartpole, "CartPole-v1"], total_steps=128, num_seeds=2, agent=config)
    assert [trial.env for trial in found.curves] == ["CartPole-v1 (2)", "CartPole-v1"]
    assert mine.returns.shape == (2, 2)


def test_actions_of_a_product_are_within_its_sizes():
    space = envs.MultiDiscrete((3, 2))
    action = jax.vmap(space.sample)(jax.random.split(jax.random.key(0), 500))
    assert set(map(tuple, np.asarray(action).tolist())) == {(a, b) for a in range(3) for b in range(2)}
    assert space.contains(jnp.array([2, 1]))
    assert not space.contains(jnp.array([2, 2]))
    with pytest.raises(ValueError, match="MultiDiscrete needs the number of options of each choice"):
        envs.MultiDiscrete(())


def test_small_images_keep_their_one_convolution():
    networks = make_networks(
        Box(0.0, 1.0, (10, 10, 4)), Discrete(3), hidden=(8,), activation="relu", kind="cnn", critic_width=1
    )  # fmt: skip
    params = networks.init(jax.random.key(0))
    assert [x.shape for x in jax.tree.leaves(params["critic"]) if x.ndim == 4] == [(3, 3, 4, 16)]
    assert lo.load("ppo").critic_width == 1
