"""The product with a gradient of its own is the product."""

import jax
import jax.numpy as jnp
import numpy as np

from discover.distributions import Categorical
from discover.networks import product


def plain(x, matrix):
    return x @ matrix


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
