"""Neighbours of the mirror family: the same policy loss, with another critic, other advantages, or another reward."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from learned_objectives.core import Progress, Rollout
from learned_objectives.mirror import Mirror, MirrorTargets, generalised_advantage


class HLGaussTargets(NamedTuple):
    advantage: jax.Array  # f32[T, B], not normalised
    value: jax.Array  # f32[T, B], the lambda-return


class HLGaussMirror(Mirror):
    """A Mirror whose critic classifies: M bins and a cross-entropy, in place of a number and a square.

        V = sum_i c_i softmax(critic)_i,    c_i the centres of M bins that divide [-limit, limit]
        p_i = mass in bin i of N(V_target, (width (c_2 - c_1))^2), cut to the range
        value loss = -mean[sum_i p_i log softmax(critic)_i]

    Targets beyond the range count as its ends, so rewards must be scaled, as by `AgentConfig.normalise_reward`. `value_clip` has
    no effect.
    Reference: Farebrother et al. 2024 (HL-Gauss, width 0.75), arXiv:2403.03950.
    """

    bins: int = struct.field(pytree_node=False, default=51)  # M
    limit: float = struct.field(pytree_node=False, default=10.0)
    width: float = struct.field(pytree_node=False, default=0.75)  # of the normal distribution, in bins

    @property
    def critic_width(self) -> int:
        return self.bins

    @property
    def edges(self) -> jax.Array:
        """f32[M + 1]: the bounds of the bins."""
        return jnp.linspace(-self.limit, self.limit, self.bins + 1)

    def value(self, critic: jax.Array) -> jax.Array:
        """f32[..., M] -> f32[...]: the expected value of a critic's output."""
        centres = (self.edges[1:] + self.edges[:-1]) / 2.0
        return jax.nn.softmax(critic) @ centres

    def distribution(self, value: jax.Array) -> jax.Array:
        """f32[...] -> f32[..., M]: what the critic should say of a value."""
        value = jnp.clip(value, -self.limit, self.limit)
        deviation = self.width * 2.0 * self.limit / self.bins
        below = jax.scipy.stats.norm.cdf((self.edges - value[..., None]) / deviation)
        return jnp.diff(below) / (below[..., -1:] - below[..., :1])

    def targets(self, rollout: Rollout, progress: Progress) -> HLGaussTargets:
        values = rollout._replace(
            critic=self.value(rollout.critic)[..., None], next_critic=self.value(rollout.next_critic)[..., None]
        )
        advantage = generalised_advantage(values, gamma=self.gamma, gae_lambda=self.settings(progress).gae_lambda)
        return HLGaussTargets(advantage, advantage + values.critic[..., 0])

    def critic_loss(self, critic, rollout: Rollout, targets: HLGaussTargets, progress: Progress):
        target = jax.lax.stop_gradient(self.distribution(targets.value))
        value_loss = -(target * jax.nn.log_softmax(critic)).sum(-1).mean()
        return self.settings(progress).value_coef * value_loss, {"value_loss": value_loss}

    def validate(self) -> None:
        """Raise ValueError with a sentence if the bins cannot be, as in a file made by hand."""
        if not (isinstance(self.bins, int) and self.bins >= 2):
            raise ValueError(f"the bins of an HLGaussMirror must be at least 2, and are {self.bins!r}.")
        for name in ("limit", "width"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"the {name} of an HLGaussMirror must be positive and finite, and is {getattr(self, name)!r}."
                )


class GroupMirror(Mirror):
    """A Mirror without a critic: the baseline of a return is the mean over the B environments at the same step.

        G_t = r_t + gamma (1 - end_t) G_{t+1},    A_t = G_t - mean_b G_t

    G is the discounted reward within the rollout, without a bootstrap at its end or at a time limit. The policy loss divides A by
    its deviation, as of any Mirror. The critic is not trained. The baseline fits where the environments are at comparable steps
    of their episodes. Raises ValueError for one environment.
    Reference: the group-relative advantage of Shao et al. 2024 (GRPO), arXiv:2402.03300.
    """

    @property
    def trains_value(self) -> bool:
        return False

    def targets(self, rollout: Rollout, progress: Progress) -> MirrorTargets:
        if rollout.reward.shape[1] < 2:
            raise ValueError(
                "a GroupMirror compares the returns of several environments and was given one: set num_envs to at least 2."
            )
        zero = jnp.zeros_like(rollout.critic)
        nothing = rollout._replace(critic=zero, next_critic=zero)
        returned = generalised_advantage(nothing, gamma=self.gamma, gae_lambda=1.0)
        return MirrorTargets(returned - returned.mean(1, keepdims=True), returned)

    def critic_loss(self, critic, rollout: Rollout, targets: MirrorTargets, progress: Progress):
        return 0.0 * critic.mean(), {"value_loss": jnp.zeros(())}


class MunchausenMirror(Mirror):
    """A Mirror whose reward has the scaled log-probability of the action that was taken added.

        r_t + alpha max(tau log pi_old(a_t|s_t), floor)

    Reference: Vieillard et al. 2020 (Munchausen RL: alpha 0.9, tau 0.03, floor -1), arXiv:2007.14430.
    """

    alpha: float = struct.field(pytree_node=False, default=0.9)
    tau: float = struct.field(pytree_node=False, default=0.03)
    floor: float = struct.field(pytree_node=False, default=-1.0)

    def targets(self, rollout: Rollout, progress: Progress) -> MirrorTargets:
        bonus = self.alpha * jnp.clip(self.tau * rollout.log_prob, self.floor, 0.0)
        return super().targets(rollout._replace(reward=rollout.reward + bonus), progress)
