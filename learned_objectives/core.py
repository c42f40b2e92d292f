"""The contract between an agent and the objective that trains it.

Shapes, here and everywhere: time-major `[T, B]`. `T` steps of time, `B` environments, `P` candidates of a
population, `M` the width of a critic's output, `A` actions. `...` is any leading shape, the same for every argument of one
call.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

PyTree = Any

# The logit of an action that is not valid in a state. Its probability is exactly 0, and products with it are finite.
INVALID = -1e9


class Statistics(struct.PyTreeNode):
    """Scale-free statistics of an agent's last update. All are 0 before the first update."""

    kl: jax.Array  # f32[], mean over samples of KL(before || after) in nats, estimated as r - 1 - log r
    entropy: (
        jax.Array
    )  # f32[] in [0, 1], of the policy over the uniform one's; of a Gaussian, min(geometric mean of std, 1)
    explained_variance: jax.Array  # f32[] in [-1, 1], of the critic: 1 - Var[R - V] / Var[R], R the lambda-return
    clipped: jax.Array  # f32[] in [0, 1], the share of samples whose ratio left [0.8, 1.2]

    @classmethod
    def zeros(cls) -> Statistics:
        return cls(*(jnp.float32(0.0) for _ in range(4)))

    @classmethod
    def typical(cls) -> Statistics:
        """Of PPO in the middle of its training, for figures and probes."""
        return cls(jnp.float32(0.01), jnp.float32(0.5), jnp.float32(0.5), jnp.float32(0.1))


class Progress(struct.PyTreeNode):
    """Where an agent stands in its life, counted in environment steps.

    The only home of the two temporal inputs of Jackson et al. 2024 (arXiv:2402.05828): n/N and log N. `step` is n, the
    number of environment steps taken before the rollout that is being learned from, so n/N starts at exactly 0.

    Reading n/N or log N raises ValueError if N is not positive, or n negative or NaN. Traced values are not checked.
    """

    step: jax.Array | float  # f32[], environment steps taken so far
    lifetime: jax.Array | float  # f32[], environment steps in the whole life
    statistics: Statistics | None = (
        None  # of the agent's last update; None: not computed, as no objective asked for them
    )

    @property
    def fraction(self) -> jax.Array:
        """n/N in [0, 1]."""
        self._check()
        return jnp.clip(jnp.asarray(self.step, jnp.float32) / self.lifetime, 0.0, 1.0)

    @property
    def log_lifetime(self) -> jax.Array:
        """log N, N in environment steps."""
        self._check()
        return jnp.log(jnp.asarray(self.lifetime, jnp.float32))

    def _check(self) -> None:
        """Here and not at construction: a Progress also holds axes for `jax.vmap`, shapes and zeros."""
        if _known(self.lifetime) and not np.all(np.asarray(self.lifetime) > 0):
            raise ValueError(
                f"the lifetime of a Progress must be positive, in environment steps, and is {self.lifetime}: "
                "give Progress(step, lifetime) with the number of steps in the whole life."
            )
        if _known(self.step) and not np.all(np.asarray(self.step) >= 0):
            raise ValueError(
                f"the step of a Progress must be at least 0, in environment steps, and is {self.step}: "
                "give the number of steps taken so far."
            )


def _known(x) -> bool:
    """Whether x is a number or an array whose values this process has."""
    return not isinstance(x, jax.core.Tracer) and getattr(x, "is_fully_addressable", True)


class Rollout(NamedTuple):
    """What happened, and what the behaving agent said about it. Time-major."""

    obs: PyTree  # [T, B, ...]: opaque to objectives
    action: PyTree  # [T, B, ...]: opaque to objectives
    log_prob: jax.Array  # f32[T, B]: log pi_old(a|s)
    critic: PyTree  # f32[T, B, M]: at the state; for an objective with heads a dictionary, see `Objective.heads`
    # f32[T, B, M]: at its true successor, before any auto-reset; 0 where the task ended. Heads have the first state of the next
    # episode there.
    next_critic: PyTree
    reward: jax.Array  # f32[T, B]
    terminated: jax.Array  # bool[T, B]: the task ended here, and nothing follows
    truncated: jax.Array  # bool[T, B]: only the clock stopped; may be true together with `terminated`


class Outputs(NamedTuple):
    """The agent as it is now, on a rollout or on a slice of one."""

    log_prob: jax.Array  # f32[...]: log pi(a|s)
    entropy: jax.Array  # f32[...]: of pi(.|s), in nats
    critic: PyTree  # f32[..., M]; for an objective with heads a dictionary, without "target"


class Objective(struct.PyTreeNode):
    """What an agent minimises. Leaves are what can be searched; static fields are architecture and knobs.

    A population of objectives is this pytree with a leading axis, so `jax.vmap` is the whole population mechanism.
    """

    @property
    def critic_width(self) -> int:
        """M: how many numbers the critic predicts per state. 1 is a value; more is a prediction vector. 0 for an objective with
        heads."""
        raise NotImplementedError

    @property
    def trains_value(self) -> bool:
        """Whether the critic is one number per state, trained to be its value. As inherited, whether it is one number."""
        return self.critic_width == 1

    def heads(self, num_actions: int) -> dict[str, tuple[int, ...]] | None:
        """The outputs per state, names and shapes, of an objective for which one vector is not enough; as inherited, None.

        Its agent acts in one Discrete space of `num_actions`. `Outputs.critic`, `Rollout.critic` and `Rollout.next_critic`
        are then dictionaries: of each output f32[..., *shape], and of "logits" f32[..., A] of the policy. Those of a Rollout
        have another such dictionary under "target" where there is a target network.
        """
        return None

    @property
    def target_share(self) -> float | None:
        """c of a target network, whose parameters become c old + (1 - c) new after every update; as inherited, None: there is
        no target network. For objectives with heads."""
        return None

    @staticmethod
    def init_state() -> PyTree:
        """What the objective remembers of one agent's life, as it is at birth: arrays. As inherited, nothing.

        The agent carries it and a checkpoint holds it. A static method, because it depends on no leaf.
        """
        return ()

    def observe(self, rollout: Rollout, state: PyTree, progress: Progress) -> tuple[PyTree, PyTree]:
        """Once per rollout: (targets, the state after it). As inherited, `targets`, and the state as it was."""
        return self.targets(rollout, progress), state

    @property
    def needs_discrete_actions(self) -> bool:
        """Whether it reads probabilities of actions, which a continuous policy does not have."""
        return False

    @property
    def needs_statistics(self) -> bool:
        """Whether it reads `progress.statistics`. An agent computes them for such objectives alone."""
        return False

    def targets(self, rollout: Rollout, progress: Progress) -> PyTree:
        """Once per rollout: what should this experience teach? Leaves lead with `[T, B]`."""
        raise NotImplementedError

    def loss(
        self, outputs: Outputs, rollout: Rollout, targets: PyTree, progress: Progress
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Once per minibatch: how far are we from it? Returns f32[] to minimise, and metrics for a log.

        As inherited, `actor_loss` + `critic_loss`, whose metrics have names of their own. An objective that does not come apart
        like that overrides this instead.
        """
        same_shape(outputs.log_prob, outputs.entropy, outputs.critic[..., 0])
        actor, of_actor = self.actor_loss(outputs.log_prob, outputs.entropy, rollout, targets, progress)
        critic, of_critic = self.critic_loss(outputs.critic, rollout, targets, progress)
        return actor + critic, of_actor | of_critic

    def actor_loss(
        self, log_prob: jax.Array, entropy: jax.Array, rollout: Rollout, targets: PyTree, progress: Progress
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The part of `loss` that the policy answers for. `log_prob`, `entropy`: f32[...], of the agent as it is now."""
        raise NotImplementedError

    def critic_loss(
        self, critic: jax.Array, rollout: Rollout, targets: PyTree, progress: Progress
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The part of `loss` that the critic answers for. `critic`: f32[..., M], of the agent as it is now."""
        raise NotImplementedError

    @property
    def separable(self) -> bool:
        """Whether `loss` is as inherited, the sum of the two, so that either network can be trained without the other."""
        return type(self).loss is Objective.loss


def require(progress: Progress | None, name: str) -> Progress:
    """The progress, or a sentence for a caller who passed none, or something else."""
    how = "pass learned_objectives.Progress(step, lifetime), both in environment steps."
    if progress is None:
        raise ValueError(f"{name} changes over an agent's life and was called without its progress: {how}")
    if not isinstance(progress, Progress):
        raise TypeError(f"{name} needs a Progress and was given {progress!r}, a {type(progress).__name__}: {how}")
    return progress


def require_statistics(progress: Progress | None, name: str) -> Statistics:
    """The statistics of the agent's last update, or a sentence for a caller who passed none."""
    found = require(progress, name).statistics
    if found is None:
        raise ValueError(
            f"{name} reads statistics of the agent's last update and was called without them: pass "
            "learned_objectives.Progress(step, lifetime, learned_objectives.Statistics(...))."
        )
    return found


def same_shape(*arrays: jax.Array) -> None:
    """Refuse [N, 1] with [N], which would broadcast to [N, N] without an error."""
    shapes = {jnp.shape(a) for a in arrays}
    if len(shapes) != 1:
        raise ValueError(
            f"log ratio, advantage, entropy and value (or prediction) must have one shape, and have {shapes}."
        )
