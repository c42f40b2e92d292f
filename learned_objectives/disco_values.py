"""The value part of Disco: action values in bins, Retrace, and moments that move with an agent's life."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from learned_objectives.core import PyTree, Rollout

BINS = 601  # of an action value, one apart
LARGEST = 300.0  # the outermost bins, after the hyperbolic transform
CURVE = 1e-3  # the linear part of that transform


def signed_log(x: jax.Array) -> jax.Array:
    """sign(x) log(1 + |x|): f32[...]."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def signed_hyperbolic(x: jax.Array) -> jax.Array:
    """sign(x) (sqrt(|x| + 1) - 1) + 0.001 x: f32[...]. Reference: Pohlen et al. 2018, proposition A.2, arXiv:1805.11593."""
    return jnp.sign(x) * (jnp.sqrt(jnp.abs(x) + 1.0) - 1.0) + CURVE * x


def inverse_hyperbolic(x: jax.Array) -> jax.Array:
    """The inverse of `signed_hyperbolic`: f32[...]."""
    root = (jnp.sqrt(1.0 + 4.0 * CURVE * (jnp.abs(x) + 1.0 + CURVE)) - 1.0) / (2.0 * CURVE)
    return jnp.sign(x) * (root**2 - 1.0)


def decoded(logits: jax.Array) -> jax.Array:
    """The values f32[...] of logits f32[..., 601]: the mean bin, through the inverse of the hyperbolic map."""
    return inverse_hyperbolic(jax.nn.softmax(logits) @ jnp.linspace(-LARGEST, LARGEST, BINS, dtype=jnp.float32))


def two_hot_cross_entropy(logits: jax.Array, value: jax.Array) -> jax.Array:
    """f32[...]: the cross-entropy of logits f32[..., 601] with the two bins on both sides of a value f32[...]."""
    place = jnp.clip(signed_hyperbolic(value), -LARGEST, LARGEST) + LARGEST
    lower = jnp.clip(jnp.floor(place), 0, BINS - 2)
    share = (place - lower)[..., None]
    log_p, index = jax.nn.log_softmax(logits), lower.astype(jnp.int32)[..., None]
    at_lower, at_upper = (jnp.take_along_axis(log_p, i, -1) for i in (index, index + 1))
    return -((1.0 - share) * at_lower + share * at_upper)[..., 0]


def selected(x: jax.Array, action: jax.Array) -> jax.Array:
    """x[a]: f32[T, B, ...] of f32[T, B, A, ...] and i32[T, B]."""
    index = action.reshape(action.shape + (1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=2)[:, :, 0]


class Moments(NamedTuple):
    """Moving averages, decay 0.99 per update. Before the first update all are 0."""

    mean: jax.Array  # f32[], biased towards 0
    square: jax.Array  # f32[], of the squares, likewise
    weight: jax.Array  # f32[], 1 - 0.99^updates, which both are divided by

    @classmethod
    def zeros(cls) -> Moments:
        return cls(*(jnp.float32(0.0) for _ in range(3)))

    def update(self, x: jax.Array, decay: float) -> Moments:
        """With x f32[...]."""
        new = (x.mean(), (x**2).mean(), jnp.float32(1.0))
        return Moments(*(decay * old + (1.0 - decay) * now for old, now in zip(self, new, strict=True)))

    def normalised(self, x: jax.Array, *, centre: bool) -> jax.Array:
        """(x - mean) / std: f32[...]; without `centre` x / std. After at least one update."""
        mean = self.mean / self.weight
        variance = jnp.maximum(self.square / self.weight - mean**2, 0.0)
        return (x - mean if centre else x) / (jnp.sqrt(variance + 1e-12) + 1e-6)


class Values(NamedTuple):
    """What the value part knows of a trajectory. pi is the policy of the agent now, V the mean of its q under pi."""

    value: jax.Array  # f32[T, B], V at the state
    next_value: jax.Array  # f32[T, B], V at its successor
    q: jax.Array  # f32[T, B, A], of the target network
    q_target: jax.Array  # f32[T, B], by Retrace
    advantage: jax.Array  # f32[T, B], q_target - mean of the target network's q under pi
    normalised_advantage: jax.Array  # f32[T, B]
    over: jax.Array  # f32[T, B, A], the target network's q less its mean under pi
    normalised_over: jax.Array  # f32[T, B, A]
    error: jax.Array  # f32[T, B], q_target - q[a] of the agent
    normalised_error: jax.Array  # f32[T, B]


def retrace(
    rollout: Rollout, q_now: jax.Array, next_mean: jax.Array, rho: jax.Array, *, gamma: float, decay: float
) -> jax.Array:
    """G_t = r_t + gamma (1 - terminated_t) [v_{t+1} + decay min(1, rho_{t+1}) (G_{t+1} - q_{t+1}) (1 - end_t)]: f32[T, B].

    `q_now` f32[T, B]: q of the action taken. `next_mean` f32[T, B], v: the mean q under pi at the successor. `rho` f32[T, B]: pi
    over the behaviour's probability, of that action. The correction at the last step is 0. Reference: Munos et al. 2016, eq. 4,
    arXiv:1606.02647.
    """
    end = rollout.terminated | rollout.truncated
    discount = gamma * (1.0 - rollout.terminated)
    trace = decay * jnp.minimum(rho, 1.0)

    def backward(correction, step):
        reward, discount, next_mean, end, q, trace = step
        target = reward + discount * (next_mean + jnp.where(end, 0.0, correction))
        return trace * (target - q), target

    steps = (rollout.reward, discount, next_mean, end, q_now, trace)
    return jax.lax.scan(backward, jnp.zeros_like(q_now[0]), steps, reverse=True)[1]


def values_of(
    rollout: Rollout,
    behaviour: jax.Array,
    moments: tuple[Moments, Moments],
    *,
    gamma: float,
    trace: float,
    decay: float,
) -> tuple[Values, tuple[Moments, Moments]]:
    """The value part of a rollout whose critic holds heads, and the moments of advantage and error after it.

    `behaviour` f32[T, B, A]: logits of the policy that acted.
    """
    now, after = rollout.critic, rollout.next_critic
    pi, next_pi = _policy(now), _policy(after)
    q, next_q = decoded(now["target"]["q"]), decoded(after["target"]["q"])
    mean, next_mean = (pi * q).sum(-1), (next_pi * next_q).sum(-1)
    rho = selected(pi, rollout.action) / selected(jax.nn.softmax(behaviour), rollout.action)
    target = retrace(rollout, selected(q, rollout.action), next_mean, rho, gamma=gamma, decay=trace)
    own = decoded(now["q"])
    advantage, error, over = target - mean, target - selected(own, rollout.action), q - mean[..., None]
    of_advantage, of_error = moments[0].update(advantage, decay), moments[1].update(error, decay)
    values = Values(
        value=(pi * own).sum(-1),
        next_value=(next_pi * decoded(after["q"])).sum(-1),
        q=q,
        q_target=target,
        advantage=advantage,
        normalised_advantage=of_advantage.normalised(advantage, centre=True),
        over=over,
        normalised_over=of_advantage.normalised(over, centre=True),
        error=error,
        normalised_error=of_error.normalised(error, centre=False),
    )
    return values, (of_advantage, of_error)


def _policy(heads: PyTree) -> jax.Array:
    """f32[T, B, A]: pi of logits, through which no gradient flows."""
    return jax.nn.softmax(jax.lax.stop_gradient(heads["logits"]))
