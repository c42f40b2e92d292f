"""Products of dense layers and minibatches, laid out or rounded as a plan or a setting says."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.spaces import Box, Discrete

import envs
import learned_objectives as lo
from discover.agents import layers
from discover.agents.agent import Agent, AgentConfig
from discover.agents.distributions import Categorical
from discover.agents.layers import bfloat16_product, product, relu
from discover.agents.learning import minibatches
from discover.agents.networks import make_networks


def plain(x, matrix):
    return x @ matrix


@pytest.mark.slow
def test_product_has_the_gradients_of_a_product():
    rng = np.random.default_rng(0)
    x, matrix, weight = (jnp.float32(rng.normal(size=s)) for s in ((3, 5, 4), (4, 6), (3, 5, 6)))

    def first(f):
        return jax.grad(lambda x, m: (jnp.sin(f(x, m)) * weight).sum(), argnums=(0, 1))(x, matrix)

    def second(f):
        def length(x, m):
            return sum((g**2).sum() for g in jax.grad(lambda x, m: (jnp.sin(f(x, m)) * weight).sum(), (0, 1))(x, m))

        return jax.grad(length, argnums=(0, 1))(x, matrix)

    for order in (first, second):
        for mine, theirs in zip(order(product), order(plain), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
    many = jax.vmap(product, in_axes=(None, 0))(x, jnp.stack([matrix, 2 * matrix]))
    np.testing.assert_allclose(many[1], 2 * np.einsum("abi,io->abo", x, matrix), rtol=1e-5)


def test_a_policy_of_logits_is_normalised():
    logits, action = jnp.float32([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]]), jnp.int32([2, 1])
    policy = Categorical(logits)
    chances = np.exp(np.float64(logits)) / np.exp(np.float64(logits)).sum(-1, keepdims=True)
    np.testing.assert_allclose(policy.log_prob(action), np.log(chances[[0, 1], [2, 1]]), rtol=1e-6)
    np.testing.assert_allclose(policy.entropy(), -(chances * np.log(chances)).sum(-1), rtol=1e-6)
    assert policy.mode().tolist() == [2, 0]


def test_bfloat16_products_round_their_factors_and_sum_in_float32():
    """Beside ml_dtypes' rounding and float64 sums; the gradients are products of rounded factors too."""
    rng = np.random.default_rng(0)
    x, matrix, weight = (rng.normal(size=shape).astype(np.float32) for shape in ((6, 300), (300, 5), (6, 5)))
    a, b, w = (np.asarray(v.astype(jnp.bfloat16), np.float64) for v in (x, matrix, weight))
    np.testing.assert_allclose(bfloat16_product(x, matrix), a @ b, rtol=1e-5, atol=1e-4)
    found = jax.grad(lambda x, m: (bfloat16_product(x, m) * weight).sum(), (0, 1))(x, matrix)
    np.testing.assert_allclose(found[0], w @ b.T, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found[1], a.T @ w, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_an_agent_of_bfloat16_products_learns():
    env, params = envs.make("CartPole-v1")
    config = AgentConfig(num_envs=4, num_steps=32, hidden=(8,))
    steps = {}
    for products in ("float32", "bfloat16"):
        agent = Agent.fit(env, dataclasses.replace(config, products=products), lo.load("ppo"))
        task = agent.task(params, 256)
        state, _ = jax.jit(partial(agent.train, num_updates=2))(lo.load("ppo"), task, jax.random.key(0))
        steps[products] = np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params)])
    assert not np.array_equal(*steps.values())
    np.testing.assert_allclose(*steps.values(), atol=0.02)


def test_minibatches_of_vectors_are_those_of_images():
    tree = {"obs": jnp.arange(24.0).reshape(4, 2, 3), "reward": jnp.arange(4.0)}
    index = jnp.array([2, 0])
    plain, flat = (minibatches(tree, flat) for flat in (False, True))
    for wanted in (index, None):
        jax.tree.map(np.testing.assert_array_equal, plain(wanted), flat(wanted))


def test_a_relu_and_its_derivative_are_those_of_jax():
    x = jnp.array([-2.0, -0.0, 0.0, 1e-30, 3.0, jnp.inf, jnp.nan])
    np.testing.assert_array_equal(relu(x), jax.nn.relu(x))
    np.testing.assert_array_equal(jax.vmap(jax.grad(relu))(x), jax.vmap(jax.grad(jax.nn.relu))(x))
    second = jax.vmap(jax.grad(lambda y: jax.grad(lambda z: relu(z) ** 2)(y)))(x[:5])
    assert second.tolist() == [0, 0, 0, 2, 2]


def test_the_residual_network_of_impala_has_fifteen_convolutions_and_one_dense_layer():
    torso = layers.Torso((), "relu", True, residual=True)
    params = torso.init(jax.random.key(0), jnp.zeros((10, 10, 4)))["params"]
    kernels = sorted(x.shape for x in jax.tree.leaves(params) if x.ndim > 1)
    convolutions = [(3, 3, 4, 16), (3, 3, 16, 32), (3, 3, 32, 32)]  # the first of each stage
    convolutions += [(3, 3, 16, 16)] * 4 + [(3, 3, 32, 32)] * 8  # two blocks of two in each
    assert kernels == sorted([*convolutions, (2 * 2 * 32, 256)])  # 10, 5, 3 and 2 pixels
    assert torso.apply({"params": params}, jnp.zeros((7, 5, 10, 10, 4))).shape == (7, 5, 256)


def test_a_residual_stage_is_that_of_numpy():
    stage = layers.ResidualStage(1, jax.nn.relu)
    x = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
    params = stage.init(jax.random.key(0), x)
    centre = np.zeros((3, 3, 1, 1), np.float32)
    centre[1, 1] = 2.0  # every convolution doubles
    params = jax.tree.map(lambda p: jnp.asarray(centre) if p.ndim == 4 else jnp.zeros_like(p), params)
    pooled = 2 * np.array([[10.0, 11.0], [14.0, 15.0]])  # the largest of 3 x 3, from every second pixel on
    np.testing.assert_allclose(stage.apply(params, x)[..., 0], pooled * 5 * 5)  # x + 2 * 2 x, twice


def test_an_image_that_a_network_cannot_halve_three_times_is_refused():
    env, _ = envs.make("Breakout-MinAtar")
    config = AgentConfig(num_envs=2, num_steps=4, num_minibatches=1, network="impala", hidden=(8,))
    agent = Agent.fit(env, config, lo.load("ppo"))
    state = agent.init(agent.task(env.default_params, 8), jax.random.key(0))
    assert agent.networks.critic(state.params, state.env.obs).shape == (2, 1)
    with pytest.raises(
        ValueError, match=r"^network 'impala' needs images of at least 8 x 8 pixels, and these have 7 x 9"
    ):
        make_networks(
            Box(0.0, 1.0, (7, 9, 1), jnp.float32),
            Discrete(2),
            hidden=(8,),
            activation="relu",
            kind="impala",
            critic_width=1,
        )
