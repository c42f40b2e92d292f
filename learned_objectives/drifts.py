"""Drifts in closed form: the fillings of a mirror-learning objective.

A drift D(r, A) penalises the step from pi_old to pi at a sample with ratio r = pi(a|s) / pi_old(a|s) and advantage A.
Mirror learning (Kuba et al. 2022, arXiv:2201.02373, Definition 3.1) asks three things of it, for every A:

    D(r, A) >= 0        D(1, A) = 0        dD/dr (1, A) = 0

`learned_objectives.verify_drift` checks them. Every drift takes log r rather than r, because log r is what an agent has and
`expm1(log r)` keeps the digits of r - 1 that `exp(log r) - 1` would lose.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from learned_objectives.core import Progress, require, same_shape

MAX_LOG_RATIO = 20.0  # a surrogate is constant in log r beyond it, before e^x overflows
FAR = 5.0  # of log r: up to it, r A - D keeps its digits in float32 although r A and D are nearly equal


class Drift(struct.PyTreeNode):
    """D(log r, A, n/N): f32[...], f32[...] -> f32[...], never negative, zero and flat at r = 1."""

    needs_progress: ClassVar[bool] = False
    needs_statistics: ClassVar[bool] = False

    def __call__(self, log_ratio: jax.Array, advantage: jax.Array, progress: Progress | None = None) -> jax.Array:
        raise NotImplementedError

    def surrogate(self, log_ratio: jax.Array, advantage: jax.Array, progress: Progress | None = None) -> jax.Array:
        """r A - D(r, A): f32[...], to be maximised. Reference: Kuba et al. 2022, eq. 5.

        Beyond |log r| = 20 it is constant in log r, before r A overflows. Where `constant_from` says that it is constant from
        a smaller ratio on, it is computed there, because r A - D loses its digits where both are large and nearly equal.
        """
        same_shape(log_ratio, advantage)
        limit = jax.lax.stop_gradient(jnp.clip(self.constant_from(advantage), FAR, MAX_LOG_RATIO))
        log_ratio = jnp.clip(log_ratio, -MAX_LOG_RATIO, limit)
        return jnp.exp(log_ratio) * advantage - self(log_ratio, advantage, progress)

    def constant_from(self, advantage: jax.Array) -> jax.Array:
        """A log r > 0 from which on r A - D(r, A) is constant: f32[...]. 20 if no such log r exists, as for A <= 0."""
        return jnp.full_like(advantage, MAX_LOG_RATIO)


class NoDrift(Drift):
    """D = 0: the plain policy gradient of A2C."""

    def __call__(self, log_ratio, advantage, progress=None):
        return jnp.zeros_like(log_ratio)


class Clip(Drift):
    """D = relu((r - clip(r, 1 - epsilon, 1 + epsilon)) A): PPO.

    r A - D is PPO's min(r A, clip(r, 1 - epsilon, 1 + epsilon) A). Only epsilon's magnitude counts, so that a search that
    steps over zero still holds a drift.
    Reference: Schulman et al. 2017, eq. 7, arXiv:1707.06347; as a drift, Kuba et al. 2022, section 4.
    """

    epsilon: jax.Array | float = 0.2

    def __call__(self, log_ratio, advantage, progress=None):
        change, epsilon = jnp.expm1(log_ratio), jnp.abs(self.epsilon)
        return jax.nn.relu((change - jnp.clip(change, -epsilon, epsilon)) * advantage)

    def constant_from(self, advantage):
        return jnp.where(advantage > 0, jnp.log1p(jnp.abs(self.epsilon)), MAX_LOG_RATIO)


class AsymmetricClip(Drift):
    """PPO's clip with a width for each sign of the advantage.

        D = relu((r - clip(r, 1 - w, 1 + w)) A),    w = epsilon e^positive where A >= 0, epsilon e^negative where A < 0

    The exponents are limited to [-4, 4].

    Both leaves zero, it is PPO's clip. Where A >= 0, only r > 1 + w is clipped. Where A < 0, only r < 1 - w is.
    Reference: Yu et al. 2025 (DAPO, "clip higher": the wider clip where A >= 0), section 3.1, arXiv:2503.14476.
    """

    positive: jax.Array | float = 0.0
    negative: jax.Array | float = 0.0
    epsilon: float = struct.field(pytree_node=False, default=0.2)

    def width(self, advantage: jax.Array) -> jax.Array:
        """f32[...]: w at these advantages, between epsilon e^-4 and epsilon e^4."""
        exponent = jnp.where(advantage >= 0, self.positive, self.negative)
        return self.epsilon * jnp.exp(jnp.clip(exponent, -4.0, 4.0))

    def __call__(self, log_ratio, advantage, progress=None):
        change, width = jnp.expm1(log_ratio), self.width(advantage)
        return jax.nn.relu((change - jnp.clip(change, -width, width)) * advantage)

    def constant_from(self, advantage):
        return jnp.where(advantage > 0, jnp.log1p(self.width(advantage)), MAX_LOG_RATIO)


class TimedClip(Drift):
    """PPO's clip, wider where A >= 0, and where A < 0 narrower in long lives and wider late in a life. Read off `ta_lpo`.

        D = relu((r - clip(r, 1 - w, 1 + w)) A)
        w = positive                              where A >= 0
        w = negative N^(-power) e^(growth n/N)    where A <  0

    N is the life in environment steps, at least 1. Only the magnitudes of the widths count. In lives of 10^6 steps w goes from
    0.15 to 0.29 where A < 0, in lives of 10^5 from 0.24 to 0.47.
    """

    positive: jax.Array | float = 0.4
    negative: jax.Array | float = 2.4
    power: jax.Array | float = 0.2
    growth: jax.Array | float = 2.0 / 3.0

    needs_progress: ClassVar[bool] = True

    def width(self, advantage: jax.Array, progress: Progress | None = None) -> jax.Array:
        """f32[...]: w at these advantages."""
        moment = require(progress, "a TimedClip")
        negative = self.negative * jnp.exp(
            self.growth * moment.fraction - self.power * jnp.maximum(moment.log_lifetime, 0.0)
        )
        return jnp.abs(jnp.where(advantage >= 0, self.positive, negative))

    def formulas(self) -> dict[str, str]:
        """{"width, A > 0": "0.4", ...}: for readers."""
        negative = f"{float(self.negative):.3g} N^-{float(self.power):.3g} exp({float(self.growth):.3g} n/N)"
        return {"width, A > 0": f"{float(self.positive):.3g}", "width, A < 0": negative}

    def __call__(self, log_ratio, advantage, progress=None):
        change, width = jnp.expm1(log_ratio), self.width(advantage, progress)
        return jax.nn.relu((change - jnp.clip(change, -width, width)) * advantage)

    def constant_from(self, advantage):
        return jnp.where(advantage > 0, jnp.log1p(jnp.abs(self.positive)), MAX_LOG_RATIO)


class DPO(Drift):
    """Discovered Policy Optimisation, read off a learned drift.

        A >= 0:  D = relu((r - 1) A - alpha tanh((r - 1) A / alpha))
        A <  0:  D = relu( log r  A - beta  tanh( log r  A / beta ))

    For A >= 0 the gain saturates smoothly and never turns back; for A < 0 the gradient changes sign once
    tanh^2(log r A / beta) > r, which is the rollback. Reference: Lu et al. 2022, eq. 8, arXiv:2210.05639.
    """

    alpha: jax.Array | float = 2.0
    beta: jax.Array | float = 0.6

    def __call__(self, log_ratio, advantage, progress=None):
        up = jnp.expm1(log_ratio) * advantage
        down = log_ratio * advantage
        return jnp.where(
            advantage >= 0,
            jax.nn.relu(up - self.alpha * jnp.tanh(up / self.alpha)),
            jax.nn.relu(down - self.beta * jnp.tanh(down / self.beta)),
        )

    def constant_from(self, advantage):
        return constant_from_gain(10.0 * jnp.abs(self.alpha), advantage)  # tanh(10) is 1 in float32


class KL(Drift):
    """D = |weight| / t (r log r - r + 1), t = max(1 - n/N, 0.001): mirror descent policy optimisation.

    The bracket's expectation under pi_old is KL(pi || pi_old), and unlike r log r it is never negative on a sample. Its
    weight grows as t falls from 1 to 0 over the life; the floor keeps it finite at n = N.
    Reference: Tomar et al. 2020, eq. 9, arXiv:2005.09814.
    """

    weight: jax.Array | float = 1.0

    needs_progress: ClassVar[bool] = True

    def __call__(self, log_ratio, advantage, progress=None):
        temperature = jnp.maximum(1.0 - require(progress, "KL").fraction, 1e-3)
        divergence = jnp.exp(log_ratio) * log_ratio - jnp.expm1(log_ratio)
        return jnp.abs(self.weight) / temperature * jax.nn.relu(divergence)


class SPO(Drift):
    """D = |A| (r - 1)^2 / (2 epsilon): Simple Policy Optimization.

    r A - D is largest at r = 1 + sign(A) epsilon, where PPO's clip begins, and falls beyond it. Only epsilon's magnitude counts.
    Reference: Xie et al. 2024, arXiv:2401.16025.
    """

    epsilon: jax.Array | float = 0.2

    def __call__(self, log_ratio, advantage, progress=None):
        return jnp.abs(advantage) * jnp.expm1(log_ratio) ** 2 / (2.0 * jnp.maximum(jnp.abs(self.epsilon), 1e-3))


class Tsallis(Drift):
    """D = |weight| (r^q - 1 - q (r - 1)) / (q (q - 1)): a constant penalty on a Tsallis divergence of order q.

        q = 0    r - 1 - log r          KL(pi_old || pi) in expectation: TRPO's constraint, as a penalty
        q = 1    r log r - r + 1        KL(pi || pi_old): mirror descent at a constant temperature
        q = 2    (r - 1)^2 / 2          half the chi-squared divergence

    The expectation under pi_old is the divergence, and every sample is non-negative. q is static and in [-1, 3].
    References: Schulman et al. 2015 (the penalty, section 4), arXiv:1502.05477; Zhu et al. 2023 (Tsallis), arXiv:2301.11476.
    """

    weight: jax.Array | float = 1.0
    q: float = struct.field(pytree_node=False, default=1.0)

    def __call__(self, log_ratio, advantage, progress=None):
        change = jnp.expm1(log_ratio)
        if self.q == 0:
            divergence = change - log_ratio
        elif self.q == 1:
            divergence = jnp.exp(log_ratio) * log_ratio - change
        else:
            divergence = (jnp.expm1(self.q * log_ratio) - self.q * change) / (self.q * (self.q - 1.0))
        return jnp.abs(self.weight) * jax.nn.relu(divergence)

    def validate(self) -> None:
        """Raise ValueError with a sentence if the order is out of range, as in a file made by hand."""
        if not (isinstance(self.q, int | float) and -1 <= self.q <= 3):
            raise ValueError(f"the order q of a Tsallis must be in [-1, 3], and is {self.q!r}.")


def constant_from_gain(gain: jax.Array, advantage: jax.Array) -> jax.Array:
    """The log r at which (r - 1) A reaches `gain` >= 0: f32[...]; 20 where A <= 0."""
    positive = advantage > 0
    log_ratio = jnp.log1p(gain / jnp.where(positive, advantage, 1.0))
    return jnp.where(positive, log_ratio, MAX_LOG_RATIO)
