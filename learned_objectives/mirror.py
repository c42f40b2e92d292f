"""Mirror learning: one objective with a hole in it, the drift."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from learned_objectives import inputs
from learned_objectives.core import Objective, Progress, Rollout, same_shape
from learned_objectives.drifts import Clip, Drift, TimedClip


class MirrorTargets(NamedTuple):
    advantage: jax.Array  # f32[T, B], not normalised
    value: jax.Array  # f32[T, B], what the critic should say


class MirrorSettings(NamedTuple):
    """The weights around a drift at a moment of a life."""

    entropy_coef: jax.Array | float
    value_coef: jax.Array | float
    gae_lambda: jax.Array | float
    value_clip: jax.Array | float | None  # None: plain squares


class Mirror(Objective):
    """Generalised advantages, a drift-regularised policy, a value and an entropy bonus.

        L = -mean[r A - D(r, A)] + value_coef mean[(V - V_target)^2] / 2 - entropy_coef mean[H]

    A is normalised over each minibatch to mean 0 and standard deviation 1. That is part of the contract, because a drift's
    shape has a scale: DPO, LPO and TA-LPO were all searched on normalised advantages.

    Special cases: `NoDrift` is A2C, `Clip` PPO, `DPO` DPO, `KL` MDPO, `LPO` LPO and TA-LPO.
    Reference: Kuba et al. 2022, eq. 5, arXiv:2201.02373; advantages, Schulman et al. 2016, eq. 16, arXiv:1506.02438.
    """

    drift: Drift = struct.field(default_factory=Clip)
    gamma: float = struct.field(pytree_node=False, default=0.99)  # discount per environment step
    gae_lambda: float = struct.field(pytree_node=False, default=0.95)
    entropy_coef: float = struct.field(pytree_node=False, default=0.01)
    value_coef: float = struct.field(pytree_node=False, default=0.5)
    value_clip: float | None = struct.field(pytree_node=False, default=None)  # None: plain squares

    @property
    def critic_width(self) -> int:
        return 1

    @property
    def needs_statistics(self) -> bool:
        return self._checked_drift().needs_statistics

    def surrogate(self, log_ratio: jax.Array, advantage: jax.Array, progress: Progress | None = None) -> jax.Array:
        """r A - D(r, A): f32[...], the line a PPO changes. Expects normalised advantages.

        Raises TypeError if the drift is not a `Drift`.
        """
        return self._checked_drift().surrogate(log_ratio, advantage, progress)

    def _checked_drift(self) -> Drift:
        if not isinstance(self.drift, Drift):
            raise TypeError(
                f"the drift of a Mirror must be a learned_objectives.Drift, and is {self.drift!r}: give lo.DPO(), "
                "lo.load(name).drift, or an instance of your own subclass of lo.Drift."
            )
        return self.drift

    def targets(self, rollout: Rollout, progress: Progress) -> MirrorTargets:
        gae_lambda = self.settings(progress).gae_lambda
        advantage = generalised_advantage(rollout, gamma=self.gamma, gae_lambda=gae_lambda)
        return MirrorTargets(advantage, advantage + rollout.critic[..., 0])

    def actor_loss(self, log_prob, entropy, rollout: Rollout, targets: MirrorTargets, progress: Progress):
        advantage = normalise(targets.advantage)
        log_ratio = log_prob - rollout.log_prob
        same_shape(log_ratio, advantage, entropy)
        policy_loss = -self.surrogate(log_ratio, advantage, progress).mean()
        entropy = entropy.mean()
        kl = (jnp.expm1(log_ratio) - log_ratio).mean()
        entropy_coef = self.settings(progress).entropy_coef
        return policy_loss - entropy_coef * entropy, {"policy_loss": policy_loss, "entropy": entropy, "kl": kl}

    def critic_loss(self, critic, rollout: Rollout, targets: MirrorTargets, progress: Progress):
        same_shape(critic[..., 0], rollout.critic[..., 0], targets.value)
        settings = self.settings(progress)
        value_loss = _value_loss(critic[..., 0], rollout.critic[..., 0], targets.value, settings.value_clip)
        return settings.value_coef * value_loss, {"value_loss": value_loss}

    def settings(self, progress: Progress) -> MirrorSettings:
        """The weights around the drift at a moment of a life. Here they are constant."""
        return MirrorSettings(self.entropy_coef, self.value_coef, self.gae_lambda, self.value_clip)


NUMBERS = ("entropy_coef", "value_coef", "gae_lambda", "value_clip")  # that a ScheduledMirror moves


class ScheduledMirror(Mirror):
    """A Mirror whose weights around the drift are numbers that a search can move, and may change over a life.

        entropy weight   entropy_coef e^(b_0)
        value weight     value_coef e^(b_1)
        lambda           1 - (1 - gae_lambda) e^(b_2), at least 0
        value clip       value_clip e^(b_3), where there is one

    b = sum_i x_i row_i of `numbers`, each in [-4, 4]; the inputs x_i are those of a `SoftClip` (`learned_objectives.inputs`). All
    zero, it is the Mirror of the same drift and settings.
    """

    numbers: jax.Array = struct.field(default_factory=lambda: jnp.zeros((1, len(NUMBERS))))  # f32[R, 4]
    time_aware: bool = struct.field(pytree_node=False, default=False)
    sees_statistics: bool = struct.field(pytree_node=False, default=False)

    @classmethod
    def create(cls, drift: Drift, *, time_aware: bool = False, sees_statistics: bool = False) -> ScheduledMirror:
        """The Mirror of this drift."""
        rows = len(inputs.names(time_aware, sees_statistics))
        return cls(
            drift, numbers=jnp.zeros((rows, len(NUMBERS))), time_aware=time_aware, sees_statistics=sees_statistics
        )

    @property
    def needs_progress(self) -> bool:
        """Whether its settings change over a life."""
        return self.time_aware or self.sees_statistics

    @property
    def needs_statistics(self) -> bool:
        return self.sees_statistics or self._checked_drift().needs_statistics

    def settings(self, progress: Progress) -> MirrorSettings:
        aware, sees = self.time_aware, self.sees_statistics
        b = inputs.combine(self.numbers, progress, time_aware=aware, sees_statistics=sees, owner="ScheduledMirror")
        entropy, value, rest, clip = jnp.moveaxis(jnp.exp(jnp.clip(b, -4.0, 4.0)), -1, 0)
        return MirrorSettings(
            self.entropy_coef * entropy,
            self.value_coef * value,
            jnp.maximum(1.0 - (1.0 - self.gae_lambda) * rest, 0.0),
            None if self.value_clip is None else self.value_clip * clip,
        )

    def table(self, progress: Progress | None = None) -> dict[str, float]:
        """{"entropy_coef": 0.01, ...}: the weights at a moment of a life, for readers. None: only where they are constant."""
        found = self.settings(progress)._asdict()  # type: ignore[arg-type]
        return {name: round(float(value), 5) for name, value in found.items() if value is not None}

    def formulas(self) -> dict[str, str]:
        """{"entropy weight": "0.01 exp(0.11 - 0.35 n/N)", ...}: of numbers that are not zero, the drift's first."""
        names = inputs.names(self.time_aware, self.sees_statistics)
        settings = (
            ("entropy weight", f"{self.entropy_coef:g}"),
            ("value weight", f"{self.value_coef:g}"),
            ("1 - lambda", f"{round(1.0 - self.gae_lambda, 6):g}"),
            ("value clip", f"{self.value_clip:g}" if self.value_clip is not None else ""),
        )
        found = dict(getattr(self.drift, "formulas", dict)())
        for (name, base), column in zip(settings, self.numbers.T, strict=True):
            if base and (text := inputs.formula(column, names)) != "0":
                found[name] = f"{base} exp({text})"
        return found

    def validate(self) -> None:
        """Raise ValueError with a sentence if the fields do not fit together, as in a file made by hand."""
        expected = (len(inputs.names(self.time_aware, self.sees_statistics)), len(NUMBERS))
        if jnp.shape(self.numbers) != expected:
            raise ValueError(
                f"this ScheduledMirror must have numbers of shape {expected}, and has {jnp.shape(self.numbers)}."
            )


def ta_ppo() -> ScheduledMirror:
    """PPO with a `TimedClip` and with less lambda in long lives: a closed form read off `ta_lpo`.

        1 - lambda = N^(1/5) / 150

    N is the life in environment steps: lambda is 0.93 in lives of 10^5 steps and 0.89 in lives of 10^6. The formula is for a
    `gae_lambda` of 0.95, as usual; with another one, 1 - lambda is in proportion.
    """
    slope = math.log(10.0) / 5.0  # of log(1 - lambda) against log10 N
    constant = 5.5 * slope - math.log(150.0 * 0.05)
    numbers = jnp.zeros((len(inputs.names(True, False)), len(NUMBERS)))
    rest = NUMBERS.index("gae_lambda")
    numbers = numbers.at[0, rest].set(constant).at[2, rest].set(slope)
    return ScheduledMirror.create(TimedClip(), time_aware=True).replace(numbers=numbers)


def _value_loss(value: jax.Array, old: jax.Array, target: jax.Array, value_clip: jax.Array | float | None) -> jax.Array:
    error = (value - target) ** 2
    if value_clip is not None:
        clipped = old + jnp.clip(value - old, -value_clip, value_clip)
        error = jnp.maximum(error, (clipped - target) ** 2)
    return 0.5 * error.mean()


def generalised_advantage(rollout: Rollout, *, gamma: float, gae_lambda: jax.Array | float) -> jax.Array:
    """A_t = delta_t + gamma lambda (1 - end_t) A_{t+1}: f32[T, B].

        delta_t = r_t + gamma (1 - terminated_t) V(s_{t+1}) - V(s_t),    end_t = terminated_t or truncated_t

    s_{t+1} is the true successor, so a time limit is bootstrapped and only a termination is not.
    """
    end = rollout.terminated | rollout.truncated
    bootstrap = jnp.where(rollout.terminated, 0.0, rollout.next_critic[..., 0])
    delta = rollout.reward + gamma * bootstrap - rollout.critic[..., 0]
    decay = gamma * gae_lambda * (1.0 - end)

    def backward(advantage, step):
        delta_t, decay_t = step
        advantage = delta_t + decay_t * advantage
        return advantage, advantage

    _, advantage = jax.lax.scan(backward, jnp.zeros_like(delta[0]), (delta, decay), reverse=True, unroll=8)
    return advantage


def normalise(advantage: jax.Array) -> jax.Array:
    """(A - mean) / (std + 1e-8), over every element; differentiable where all are equal."""
    std = jnp.sqrt(advantage.var() + 1e-30)  # far below rounding
    return (advantage - advantage.mean()) / (std + 1e-8)
