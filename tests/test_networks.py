"""Products of dense layers and minibatches, laid out or rounded as a plan or a setting says."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
import learned_objectives as lo
from discover.agents.agent import Agent, AgentConfig
from discover.agents.distributions import Categorical
from discover.agents.layers import bfloat16_product, product, relu
from discover.agents.learning import minibatches


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
