"""Actor and critic by observation rank, with the head that an action space asks for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from discover.agents.distributions import MASKED, Categorical, Gaussian, MultiCategorical
from discover.agents.layers import IMPALA_SIZE, DotGeneral, Torso, copied_product, gain, orthogonalise
from discover.agents.observations import Masked, Recalled
from discover.agents.recurrent import CELLS, Bare, Recurrent, Stepped, first, follow
from envs import spaces
from envs.spaces import MultiDiscrete

IMAGES = {"cnn": 1, "impala": IMPALA_SIZE}  # networks for images, and the smallest image that each can have


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
    actor: Callable[[Any, Any], Any]  # -> a policy: see `distributions`
    critic: Callable[[Any, Any], Any]  # -> f32[..., M], or heads by name
    noise: Callable[[jax.Array, tuple[int, ...]], jax.Array]  # (key, shape) -> what a sample needs
    to_env: Callable[[jax.Array], jax.Array]  # the policy's action -> the environment's
    # Of recurrent networks, whose observations are `Recalled`. Those of the others are as the environment gives them.
    first: Callable[[Any], Any] = lambda obs: obs  # the first observation of an episode
    follow: Callable[[Any, Any, Any], Any] = lambda params, obs, after: after  # the observation after a step from `obs`
    unrolled: Networks | None = None  # the same networks for whole sequences [L, N, ...]; None: they are not recurrent


def make_networks(
    observation_space: Any,
    action_space: Any,
    *,
    hidden: tuple[int, ...],
    activation: str,
    kind: str,
    critic_width: int,
    dot: DotGeneral = copied_product,
) -> Networks:
    """Networks for these spaces. `dot`: the product of their dense layers, see `dot_general`. `kind`:

        "mlp", "cnn", "table"    as named
        "auto"                   a table where an observation is one integer, a CNN where it is [height, width, channels]
        "impala"                 the residual CNN of IMPALA
        "gru", "mingru"          a recurrent cell of hidden[-1] numbers behind the layers of "auto"

    Raises ValueError with a sentence for a space that no head serves.
    """
    if kind == "table" or isinstance(observation_space, spaces.Discrete):
        return _make_tables(observation_space, action_space, kind, critic_width)
    shape = tuple(observation_space.shape)
    if kind in IMAGES:
        _require_image(shape, IMAGES[kind], kind)
    image = kind in IMAGES or (kind in ("auto", *CELLS) and len(shape) == 3)
    size, actor_type, head, to_env = _head(action_space)
    torso = Torso(hidden, activation, image, dot, residual=kind == "impala")
    below = Bare(dot) if kind in CELLS else torso
    actor, critic = actor_type(below, size), Critic(below, critic_width)

    def noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return head.noise(key, shape, sum(size) if isinstance(size, tuple) else size)

    def prepare(obs: jax.Array) -> jax.Array:
        if obs.dtype in (jnp.uint8, jnp.bool_):
            obs = obs.astype(jnp.float32) / (np.float32(255) if obs.dtype == jnp.uint8 else 1)
        return obs if image else obs.reshape((*obs.shape[: obs.ndim - len(shape)], -1))

    if kind in CELLS:
        cell = CELLS[kind](hidden[-1], dot)
        stepped = [
            Stepped(Recurrent(torso, cell, head), name, prepare)
            for name, head in (("actor", actor), ("critic", critic))
        ]
        return _make_recurrent(*stepped, width=hidden[-1], shape=shape, noise=noise, to_env=to_env)

    def init(key: jax.Array) -> Any:
        obs = prepare(jnp.zeros(shape, jnp.float32))
        gains = {"actor": actor.init(key, obs), "critic": critic.init(key, obs)}
        return orthogonalise(gains, key)

    return Networks(
        init=init,
        actor=lambda params, obs: actor.apply(params["actor"], prepare(obs)),
        critic=lambda params, obs: critic.apply(params["critic"], prepare(obs)),
        noise=noise,
        to_env=to_env,
    )


def _require_image(shape: tuple[int, ...], least: int, kind: str) -> None:
    """ValueError where observations are no images of at least `least` pixels along the shorter side."""
    if len(shape) != 3:
        raise ValueError(
            f"A CNN needs observations [height, width, channels], and these have shape {shape}: use 'mlp'."
        )
    if min(shape[:2]) < least:
        raise ValueError(
            f"network {kind!r} needs images of at least {least} x {least} pixels, and these have {shape[0]} x "
            f"{shape[1]}: use 'cnn'."
        )


def _make_recurrent(actor: Stepped, critic: Stepped, *, width: int, shape: tuple[int, ...], **rest: Any) -> Networks:
    def init(key: jax.Array) -> Any:
        obs, hidden = actor.prepare(jnp.zeros(shape, jnp.float32)), jnp.zeros(width, jnp.float32)
        return orthogonalise({each.name: each.module.init(key, hidden, obs) for each in (actor, critic)}, key)

    stepwise = Networks(
        init=init,
        actor=actor.step,
        critic=critic.step,
        first=partial(first, width),
        follow=partial(follow, (actor, critic)),
        **rest,
    )
    return stepwise._replace(unrolled=stepwise._replace(actor=actor.unroll, critic=critic.unroll))


def with_masks(networks: Networks) -> Networks:
    """Networks of `Masked` observations, whose policies take valid actions alone."""

    def actor(params: Any, obs: Masked | Recalled) -> Any:
        obs, mask = _unmasked(obs)
        policy = networks.actor(params, obs)
        return MASKED[type(policy)].of(policy, mask)

    return networks._replace(
        actor=actor,
        critic=lambda params, obs: networks.critic(params, _unmasked(obs)[0]),
        follow=lambda params, obs, after: networks.follow(params, _unmasked(obs)[0], after),
        unrolled=networks.unrolled and with_masks(networks.unrolled),
    )


def _unmasked(obs: Masked | Recalled) -> tuple[Any, jax.Array]:
    """(the observation without its mask, the mask)."""
    if isinstance(obs, Masked):
        return obs.obs, obs.mask
    return obs._replace(obs=obs.obs.obs), obs.obs.mask


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

    return networks._replace(critic=critic, unrolled=networks.unrolled and with_heads(networks.unrolled, heads))


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
