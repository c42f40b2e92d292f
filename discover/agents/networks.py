"""Actor and critic by observation rank, with the head that an action space asks for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from discover.agents.distributions import Categorical, Gaussian, MultiCategorical
from envs import spaces
from envs.spaces import MultiDiscrete

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


def _copied(x, matrix, *_, **__):
    return product(x, matrix)


def _rounded(x, matrix, *_, **__):
    return bfloat16_product(x, matrix)


def dot_general(products: str, copies_transposed: bool) -> DotGeneral:
    """The product of dense layers: `products` "float32" or "bfloat16"."""
    if products == "bfloat16":
        return _rounded
    return _copied if copies_transposed else jax.lax.dot_general


class Torso(nn.Module):
    """f32[..., observation] -> f32[..., hidden[-1]]: dense layers, and convolutions before them for images.

    Small images, as MinAtar's, have one convolution; from `NATURE_SIZE` on they have the three of the Nature CNN and its dense
    layer of 512 (Mnih et al. 2015, Nature 518:529).
    """

    hidden: tuple[int, ...]
    activation: str
    image: bool
    dot: DotGeneral = _copied

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        act = ACTIVATIONS[self.activation]
        if self.image and min(x.shape[-3:-1]) >= NATURE_SIZE:
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


class Critic(nn.Module):
    """f32[..., observation] -> f32[..., M]."""

    torso: Torso
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.width, kernel_init=gain(1.0), dot_general=self.torso.dot)(self.torso(x))


class CategoricalActor(nn.Module):
    torso: Torso
    size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> Categorical:
        return Categorical(nn.Dense(self.size, kernel_init=gain(0.01), dot_general=self.torso.dot)(self.torso(x)))


class MultiCategoricalActor(nn.Module):
    torso: Torso
    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> MultiCategorical:
        logits = nn.Dense(sum(self.sizes), kernel_init=gain(0.01), dot_general=self.torso.dot)(self.torso(x))
        return MultiCategorical(logits, self.sizes)


class GaussianActor(nn.Module):
    torso: Torso
    size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> Gaussian:
        mean = nn.Dense(self.size, kernel_init=gain(0.01), dot_general=self.torso.dot)(self.torso(x))
        return Gaussian(mean, self.param("log_std", nn.initializers.zeros, (self.size,), jnp.float32))


class Table(nn.Module):
    """i32[...] -> f32[..., width]: one row of numbers per state, all zero at first."""

    states: int
    width: int

    @nn.compact
    def __call__(self, state: jax.Array) -> jax.Array:
        rows = self.param("rows", nn.initializers.zeros, (self.states, self.width), jnp.float32)
        return rows[state]


class TableActor(nn.Module):
    states: int
    size: int

    @nn.compact
    def __call__(self, state: jax.Array) -> Categorical:
        return Categorical(Table(self.states, self.size)(state))


class Networks(NamedTuple):
    """A separate actor and critic for one environment: pure functions of (parameters, observation)."""

    init: Callable[[jax.Array], Any]  # key -> {"actor": ..., "critic": ...}
    actor: Callable[[Any, jax.Array], Categorical | Gaussian]
    critic: Callable[[Any, jax.Array], jax.Array]
    noise: Callable[[jax.Array, tuple[int, ...]], jax.Array]  # (key, shape) -> what a sample needs
    to_env: Callable[[jax.Array], jax.Array]  # the policy's action -> the environment's


def make_networks(
    observation_space: Any,
    action_space: Any,
    *,
    hidden: tuple[int, ...],
    activation: str,
    kind: str,
    critic_width: int,
    dot: DotGeneral = _copied,
) -> Networks:
    """Networks for these spaces. `kind`: "mlp", "cnn", "table", or "auto": a table where an observation is one integer, a CNN
    where it is [height, width, channels]. `dot`: the product of their dense layers, see `dot_general`.

    Raises ValueError with a sentence for a space that no head serves.
    """
    if kind == "table" or isinstance(observation_space, spaces.Discrete):
        return _make_tables(observation_space, action_space, kind, critic_width)
    shape = tuple(observation_space.shape)
    if kind == "cnn" and len(shape) != 3:
        raise ValueError(
            f"A CNN needs observations [height, width, channels], and these have shape {shape}: use 'mlp'."
        )
    image = kind == "cnn" or (kind == "auto" and len(shape) == 3)
    size, actor_type, head, to_env = _head(action_space)
    actor = actor_type(Torso(hidden, activation, image, dot), size)
    critic = Critic(Torso(hidden, activation, image, dot), critic_width)

    def prepare(obs: jax.Array) -> jax.Array:
        if obs.dtype in (jnp.uint8, jnp.bool_):
            obs = obs.astype(jnp.float32) / (np.float32(255) if obs.dtype == jnp.uint8 else 1)
        return obs if image else obs.reshape((*obs.shape[: obs.ndim - len(shape)], -1))

    def init(key: jax.Array) -> Any:
        obs = prepare(jnp.zeros(shape, jnp.float32))
        gains = {"actor": actor.init(key, obs), "critic": critic.init(key, obs)}
        return orthogonalise(gains, key)

    return Networks(
        init=init,
        actor=lambda params, obs: actor.apply(params["actor"], prepare(obs)),
        critic=lambda params, obs: critic.apply(params["critic"], prepare(obs)),
        noise=lambda key, shape: head.noise(key, shape, sum(size) if isinstance(size, tuple) else size),
        to_env=to_env,
    )


Heads = tuple[tuple[str, tuple[int, ...]], ...]  # names of outputs per state, and their shapes


def heads_width(heads: Heads) -> int:
    """How many numbers all outputs are."""
    return sum(math.prod(shape) for _, shape in heads)


def with_heads(networks: Networks, heads: Heads) -> Networks:
    """Networks whose critic of `heads_width` numbers is a dictionary: each output by its name, f32[..., *shape], and the policy's
    "logits"."""
    ends = list(itertools.accumulate(math.prod(shape) for _, shape in heads))

    def critic(params: Any, obs: jax.Array) -> dict[str, jax.Array]:
        parts = jnp.split(networks.critic(params, obs), ends[:-1], axis=-1)
        named = {name: x.reshape(*x.shape[:-1], *shape) for (name, shape), x in zip(heads, parts, strict=True)}
        return {"logits": networks.actor(params, obs).logits} | named

    return networks._replace(critic=critic)


def with_target(networks: Networks) -> Networks:
    """The same, with the outputs under params["target"] besides, as "target"."""

    def critic(params: Any, obs: jax.Array) -> dict[str, Any]:
        return networks.critic(params, obs) | {"target": networks.critic(params["target"], obs)}

    return networks._replace(critic=critic)


def _make_tables(observation_space: Any, action_space: Any, kind: str, critic_width: int) -> Networks:
    if not isinstance(observation_space, spaces.Discrete):
        raise ValueError(
            f"A table needs observations that number states, and these are arrays of shape {tuple(observation_space.shape)}: "
            "use network 'mlp'."
        )
    if not isinstance(action_space, spaces.Discrete) or kind not in ("auto", "table"):
        raise ValueError(
            f"States that are numbered are looked up, by agents of a Discrete action space with network 'table' or 'auto'; "
            f"this is {kind!r} with {action_space}."
        )
    actor = TableActor(observation_space.n, action_space.n)
    critic = Table(observation_space.n, critic_width)

    def init(key: jax.Array) -> Any:
        return {"actor": actor.init(key, jnp.int32(0)), "critic": critic.init(key, jnp.int32(0))}

    return Networks(
        init=init,
        actor=lambda params, obs: actor.apply(params["actor"], obs),
        critic=lambda params, obs: critic.apply(params["critic"], obs),
        noise=lambda key, shape: Categorical.noise(key, shape, action_space.n),
        to_env=lambda action: action,
    )


def _head(space: Any):
    """(number of outputs, or of each choice, actor, distribution, map to the environment's action) for an action space."""
    if isinstance(space, spaces.Discrete):
        return space.n, CategoricalActor, Categorical, lambda action: action
    if isinstance(space, MultiDiscrete):
        return space.sizes, MultiCategoricalActor, MultiCategorical, lambda action: action
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return space.shape[0], GaussianActor, Gaussian, _rescale(space)
    raise ValueError(
        f"Agents act in a Discrete space, in MultiDiscrete or in a Box of rank 1, and this environment has {space}: give it to "
        "envs.register or envs.make, which adapt a Dict, a Tuple and a Box of another rank."
    )


def _rescale(space: spaces.Box) -> Callable[[jax.Array], jax.Array]:
    """Clip to [-1, 1] and stretch to the bounds, where the space has any."""
    # NumPy's, because a JAX array made while something is traced belongs to that trace's devices.
    low, high = np.float32(space.low), np.float32(space.high)
    bounded = np.isfinite(low) & np.isfinite(high)
    low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
    centre, half = np.float32((low + high) / 2), np.float32((high - low) / 2)
    return lambda action: jnp.where(bounded, centre + half * jnp.clip(action, -1.0, 1.0), action)
