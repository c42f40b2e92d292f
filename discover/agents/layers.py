"""Layers of networks: activations, initialisation, products, and the torso that actors and critics share."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

IMPALA_FEATURES = (16, 32, 32)  # channels of the stages of IMPALA's large network, each of which halves the image
IMPALA_SIZE = 2 ** len(
    IMPALA_FEATURES
)  # pixels of the shorter side, below which the last stage has a single pixel or less
NATURE_SIZE = 36  # pixels of the shorter side, from which the convolutions of the Nature CNN leave something


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0). Its derivative reads the result and not x, so that x need not be kept for a backward pass: on a GPU that is a
    quarter of a dense layer's memory traffic."""
    return jnp.maximum(x, 0.0)


@relu.defjvp
def _relu_jvp(primals, tangents):
    y = relu(*primals)
    return y, jnp.where(y > 0, *tangents, 0.0)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "relu": relu,
    "swish": nn.swish,
}


def gain(scale: float) -> Callable[..., jax.Array]:
    """An initialiser that only says how long a layer's matrix shall be; `orthogonalise` gives it a direction."""
    return nn.initializers.constant(scale)


def orthogonalise(params: Any, key: jax.Array) -> Any:
    """Every matrix of gains becomes that gain times a random orthogonal matrix; vectors stay as they are.

    One draw for all of them: each draw of its own would cost the compiler as much as a layer does.
    """
    leaves, treedef = jax.tree.flatten(params)
    sizes = [leaf.size if leaf.ndim >= 2 else 0 for leaf in leaves]
    noise = jnp.split(jax.random.normal(key, (sum(sizes),), jnp.float32), list(itertools.accumulate(sizes))[:-1])
    matrices = [
        leaf * polar(x.reshape(-1, leaf.shape[-1])).reshape(leaf.shape) if leaf.ndim >= 2 else leaf
        for leaf, x in zip(leaves, noise, strict=True)
    ]
    return jax.tree.unflatten(treedef, matrices)


def polar(x: jax.Array) -> jax.Array:
    """The orthogonal polar factor of a matrix, by products alone: Haar-distributed if the matrix is Gaussian.

    Newton-Schulz, X <- X (3 I - X^T X) / 2, takes every singular value to 1. Products cannot hang, while several QR
    factorisations batched over agents in one program deadlock XLA's two-thread CPU pool on jax 0.10.
    """
    tall = x if x.shape[0] >= x.shape[1] else x.T
    tall = tall / jnp.linalg.norm(tall)  # Frobenius, so that every singular value is in (0, 1]
    # The smallest of n singular values is near n^-1.5 after the division, and grows by 3/2 a step until it is near 1.
    tall = jax.lax.fori_loop(0, 40, lambda _, x: 1.5 * x - 0.5 * x @ (x.T @ x), tall)
    return tall if x.shape[0] >= x.shape[1] else tall.T


@jax.custom_vjp
def product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """x @ matrix, f32[..., in] and f32[in, out]; its gradient with respect to the matrix takes x transposed in memory.
    For plans with `copies_transposed`.

    On CPUs XLA would compute x^T g with Eigen, which repacks x at the cost of the product itself. A transposed copy uses the same
    fast kernel as all other products (measured, 1,024 x 400 x 64: 0.52 to 0.46 ms, and 0.14 to 0.08 for 64 x 64).
    In reverse mode alone, any number of times over: `jax.jvp` does not go through it.
    """
    return x @ matrix


def _product_forward(x, matrix):
    return x @ matrix, (x, matrix)


def _product_backward(kept, gradient):
    x, matrix = kept
    rows = x.reshape(-1, x.shape[-1])
    columns = jax.lax.optimization_barrier(rows.T)
    return gradient @ matrix.T, columns @ gradient.reshape(-1, gradient.shape[-1])


product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def bfloat16_product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """x @ matrix, f32[..., in] and f32[in, out], with both factors rounded to bfloat16 and the sum in float32; its gradients are
    such products too. In reverse mode alone, any number of times over."""
    x, matrix = (jnp.asarray(factor, jnp.bfloat16) for factor in (x, matrix))
    return jax.lax.dot_general(x, matrix, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _bfloat16_forward(x, matrix):
    return bfloat16_product(x, matrix), (x, matrix)


def _bfloat16_backward(kept, gradient):
    x, matrix = kept
    rows = x.reshape(-1, x.shape[-1])
    return bfloat16_product(gradient, matrix.T), bfloat16_product(rows.T, gradient.reshape(-1, gradient.shape[-1]))


bfloat16_product.defvjp(_bfloat16_forward, _bfloat16_backward)

DotGeneral = Callable[..., jax.Array]  # as flax's Dense calls it


def copied_product(x, matrix, *_, **__):
    """`product`, as flax's Dense calls it."""
    return product(x, matrix)


def _rounded(x, matrix, *_, **__):
    return bfloat16_product(x, matrix)


def dot_general(products: str, copies_transposed: bool) -> DotGeneral:
    """The product of dense layers: `products` "float32" or "bfloat16"."""
    if products == "bfloat16":
        return _rounded
    return copied_product if copies_transposed else jax.lax.dot_general


class ResidualStage(nn.Module):
    """f32[..., h, w, c] -> f32[..., h / 2, w / 2, features]: a convolution, a pooling by 2, two residual blocks."""

    features: int
    act: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def conv(x):
            return nn.Conv(self.features, (3, 3), kernel_init=gain(1.0))(x)

        x = nn.max_pool(conv(x), (3, 3), strides=(2, 2), padding="SAME")
        for _ in range(2):
            x = x + conv(self.act(conv(self.act(x))))
        return x


class Torso(nn.Module):
    """f32[..., observation] -> f32[..., hidden[-1]]: dense layers, and convolutions before them for images.

    Small images, as MinAtar's, have one convolution; from `NATURE_SIZE` on they have the three of the Nature CNN and its dense
    layer of 512 (Mnih et al. 2015, Nature 518:529). `residual`: those of IMPALA's large network in place of either (Espeholt
    et al. 2018, arXiv:1802.01561, figure 3).
    """

    hidden: tuple[int, ...]
    activation: str
    image: bool
    dot: DotGeneral = copied_product
    residual: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        act = ACTIVATIONS[self.activation]
        if self.residual:
            for features in IMPALA_FEATURES:
                x = ResidualStage(features, act)(x)
            x = act(x).reshape((*x.shape[:-3], -1))
            x = act(nn.Dense(256, kernel_init=gain(2**0.5), dot_general=self.dot)(x))
        elif self.image and min(x.shape[-3:-1]) >= NATURE_SIZE:
            for features, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
                conv = nn.Conv(features, (size, size), (stride, stride), padding="VALID", kernel_init=gain(2**0.5))
                x = act(conv(x))
            x = act(nn.Dense(512, kernel_init=gain(2**0.5), dot_general=self.dot)(x.reshape((*x.shape[:-3], -1))))
        elif self.image:
            x = act(nn.Conv(16, (3, 3), kernel_init=gain(2**0.5))(x))
            x = x.reshape((*x.shape[:-3], -1))
        for width in self.hidden:
            x = act(nn.Dense(width, kernel_init=gain(2**0.5), dot_general=self.dot)(x))
        return x
