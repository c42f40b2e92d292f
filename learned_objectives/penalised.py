"""Neighbours of the mirror family with another policy loss: penalties on a KL divergence, and dropped samples."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from learned_objectives.core import Outputs, Progress, Rollout, require_statistics, same_shape
from learned_objectives.drifts import MAX_LOG_RATIO, Clip, Drift, NoDrift, Tsallis
from learned_objectives.mirror import Mirror, MirrorTargets, normalise

LARGEST = 1e4  # of beta and of 1 / beta


class AdaptiveKLTargets(NamedTuple):
    advantage: jax.Array  # f32[T, B], not normalised
    value: jax.Array  # f32[T, B], the lambda-return
    beta: jax.Array  # f32[T, B], of this rollout, the same for all samples


class AdaptiveKLMirror(Mirror):
    """A Mirror with a penalty on the KL divergence from the old policy, whose weight follows the divergence that was measured.

        policy loss = -mean[r A - D(r, A) - beta (r - 1 - log r)]
        beta <- beta / 2    if KL < target / 1.5
        beta <- 2 beta      if KL > 1.5 target

    KL is that of the last update, KL(before || after) in nats over its whole rollout; the expectation of r - 1 - log r under the
    old policy is the divergence that is penalised. beta is 1 at an agent's birth, is between 1e-4 and 1e4, and does not change
    before the first update. It is the state of this objective, which an agent carries. The drift D is none as in the paper; any
    other one may be set.

    Reference: Schulman et al. 2017, section 4 (targets of 0.003, 0.01 and 0.03), arXiv:1707.06347.
    """

    drift: Drift = struct.field(default_factory=NoDrift)
    target: float = struct.field(pytree_node=False, default=0.01)  # nats

    @property
    def needs_statistics(self) -> bool:
        return True

    @staticmethod
    def init_state() -> jax.Array:
        """f32[]: beta at birth."""
        return jnp.float32(1.0)

    def observe(self, rollout: Rollout, state: jax.Array, progress: Progress) -> tuple[AdaptiveKLTargets, jax.Array]:
        """(targets, beta): beta is adapted first, to the divergence of the update before this rollout."""
        kl = require_statistics(progress, "AdaptiveKLMirror").kl
        factor = jnp.where(kl < self.target / 1.5, 0.5, jnp.where(kl > self.target * 1.5, 2.0, 1.0))
        is_first = jnp.asarray(progress.step) <= 0
        beta = jnp.where(is_first, state, jnp.clip(state * factor, 1.0 / LARGEST, LARGEST))
        found = Mirror.targets(self, rollout, progress)
        return AdaptiveKLTargets(*found, jnp.broadcast_to(beta, found.advantage.shape)), beta

    def targets(self, rollout: Rollout, progress: Progress) -> AdaptiveKLTargets:
        """Those of a new-born agent. `observe` has the state."""
        found = super().targets(rollout, progress)
        return AdaptiveKLTargets(*found, jnp.broadcast_to(self.init_state(), found.advantage.shape))

    def actor_loss(self, log_prob, entropy, rollout: Rollout, targets: AdaptiveKLTargets, progress: Progress):
        loss, metrics = super().actor_loss(log_prob, entropy, rollout, targets, progress)  # type: ignore[arg-type]
        log_ratio = jnp.clip(log_prob - rollout.log_prob, -MAX_LOG_RATIO, MAX_LOG_RATIO)
        penalty = (targets.beta * Tsallis(1.0, 0.0)(log_ratio, targets.advantage)).mean()
        return loss + penalty, metrics | {"beta": targets.beta.mean()}

    def validate(self) -> None:
        """Raise ValueError with a sentence if the target cannot be, as in a file made by hand."""
        _require_positive(self, "target")


class AveragedKLMirror(Mirror):
    """A Mirror with a penalty on the KL divergence from an average of the policies before.

        policy loss = -mean[r A - D(r, A)] + weight mean[KL(pi(.|s) || pi_average(.|s))]
        average <- share average + (1 - share) parameters        once per update

    KL is exact, over all actions of a Discrete space. The average is one of parameters, that of a target network
    (`target_share`), and not one of policies or of their logits: a share of 0.9 weighs the last ten updates. The KL
    regularisation of Vieillard et al. averages action values over all iterations, and does so through the last policy alone; they
    motivate the average, and this penalty is not theirs. At a time limit the successor's value is not known
    to an agent with heads, and that of the state itself replaces it. The gradients of actor and critic are clipped as one.

    Reference: Vieillard et al. 2020 ("Leverage the Average"), arXiv:2003.14089.
    """

    weight: float = struct.field(pytree_node=False, default=0.1)
    share: float = struct.field(pytree_node=False, default=0.9)

    @property
    def critic_width(self) -> int:
        return 0

    @property
    def needs_discrete_actions(self) -> bool:
        return True

    @property
    def target_share(self) -> float:
        return self.share

    def heads(self, num_actions: int) -> dict[str, tuple[int, ...]]:
        """One value. The logits of the policy, and those of the target network, are there for every objective with heads."""
        return {"value": (1,)}

    def targets(self, rollout: Rollout, progress: Progress) -> MirrorTargets:
        return super().targets(_of_values(rollout), progress)

    def loss(self, outputs: Outputs, rollout: Rollout, targets: MirrorTargets, progress: Progress):
        values = _of_values(rollout)
        actor, of_actor = self.actor_loss(outputs.log_prob, outputs.entropy, values, targets, progress)
        critic, of_critic = self.critic_loss(outputs.critic["value"], values, targets, progress)
        average = jax.nn.log_softmax(jax.lax.stop_gradient(rollout.critic["target"]["logits"]))
        now = jax.nn.log_softmax(outputs.critic["logits"])
        kl = (jnp.exp(now) * (now - average)).sum(-1).mean()
        return actor + critic + self.weight * kl, of_actor | of_critic | {"kl_to_average": kl}

    def validate(self) -> None:
        """Raise ValueError with a sentence if the penalty cannot be, as in a file made by hand."""
        _require_positive(self, "weight")
        if not 0 <= self.share < 1:
            raise ValueError(f"the share of an AveragedKLMirror must be in [0, 1), and is {self.share!r}.")


def _of_values(rollout: Rollout) -> Rollout:
    """A rollout of an agent with a head "value", as one of an agent with a value alone."""
    value, following = rollout.critic["value"], rollout.next_critic["value"]
    cut = rollout.truncated & ~rollout.terminated
    return rollout._replace(critic=value, next_critic=jnp.where(cut[..., None], value, following))


class DropoutMirror(Mirror):
    """A Mirror that drops samples whose ratio is far from 1 from its policy loss, on either side and for either sign of A.

        policy loss = -sum_i m_i (r_i A_i - D(r_i, A_i)) / max(sum_i m_i, 1),    m_i = 1 if |r_i - 1| <= threshold, otherwise 0

    A clip, the default drift, cuts the gradient of a sample only where it would raise the ratio further from 1. This drops others
    too: where A < 0 and r is large, their variance is largest. The entropy and the value loss are of all samples. It is no drift:
    beyond the threshold, r A - D without a gradient has a negative D for some samples.

    References: Lin et al. 2023 (sample dropout by the deviation of the ratio), arXiv:2302.02299. Xie et al. 2023 (D-PPO,
    arXiv:2310.20380) drop samples by a bound of the same variance, by another rule.
    """

    drift: Drift = struct.field(default_factory=Clip)
    threshold: float = struct.field(pytree_node=False, default=0.5)

    def actor_loss(self, log_prob, entropy, rollout: Rollout, targets: MirrorTargets, progress: Progress):
        log_ratio, advantage = log_prob - rollout.log_prob, normalise(targets.advantage)
        same_shape(log_ratio, advantage, entropy)
        kept = jnp.abs(jnp.expm1(jax.lax.stop_gradient(log_ratio))) <= self.threshold
        gain = jnp.where(kept, self.surrogate(jnp.where(kept, log_ratio, 0.0), advantage, progress), 0.0)
        policy_loss, entropy = -gain.sum() / jnp.maximum(kept.sum(), 1), entropy.mean()
        kl = (jnp.expm1(log_ratio) - log_ratio).mean()
        metrics = {"policy_loss": policy_loss, "entropy": entropy, "kl": kl}
        dropped = 1.0 - kept.mean(dtype=jnp.float32)
        return policy_loss - self.settings(progress).entropy_coef * entropy, metrics | {"dropped": dropped}

    def validate(self) -> None:
        """Raise ValueError with a sentence if the threshold cannot be, as in a file made by hand."""
        _require_positive(self, "threshold")


def _require_positive(objective: Mirror, name: str) -> None:
    value = getattr(objective, name)
    if not (isinstance(value, int | float) and 0 < value < math.inf):
        kind = type(objective).__name__
        raise ValueError(
            f"the {name} of {'an' if kind[0] == 'A' else 'a'} {kind} must be positive and finite, and is {value!r}."
        )
