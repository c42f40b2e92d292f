"""LPO and TA-LPO: the drift as a small network, to be searched."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from learned_objectives.core import require
from learned_objectives.drifts import Clip, Drift, constant_from_gain

MAX_LOG_RATIO = 5.0  # beyond it the features stand still: finite for any ratio an agent can produce


def features_v1(log_ratio: jax.Array, advantage: jax.Array) -> jax.Array:
    """x(r, A) = [u, A u], u = [log r, (log r)^2, 1 - r, (1 - r)^2]: f32[..., 8].

    All eight vanish at r = 1. Order and signs are those of Lu et al. 2022, and belong to every saved file.
    """
    log_ratio = jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    change = -jnp.expm1(log_ratio)
    u = jnp.stack([log_ratio, log_ratio**2, change, change**2], axis=-1)
    return jnp.concatenate([u, jnp.asarray(advantage)[..., None] * u], axis=-1)


FEATURES = {"v1": (features_v1, 8)}  # version -> (map, width); a file names the version it was searched with


class LPO(Drift):
    """Learned Policy Optimisation: a bias-free two-layer drift.

        D(r, A) = relu(D_clip(r, A) + w_out . tanh(W_hidden^T x(r, A)) - slack)

    Every feature in x vanishes at r = 1 and there is no bias, so the bracket is -slack there: the relu is closed in a
    neighbourhood of r = 1, and the three laws of a drift hold for *any* weights. `epsilon` is the clip of D_clip, the
    start of the search; None leaves D_clip out, so that the search starts from no drift at all.

    `time_aware=True` is TA-LPO: x becomes [x, n/N x], sixteen features that still vanish at r = 1. (Concatenating n/N itself
    would not, and would break the laws.)

    Reference: Lu et al. 2022, section 4, arXiv:2210.05639; Jackson et al. 2024, eq. 10, arXiv:2402.05828.
    """

    hidden: jax.Array  # f32[F, width], F = 8, or 16 if time-aware
    out: jax.Array  # f32[width]
    width: int = struct.field(pytree_node=False, default=128)
    time_aware: bool = struct.field(pytree_node=False, default=False)
    epsilon: float | None = struct.field(pytree_node=False, default=0.2)
    slack: float = struct.field(pytree_node=False, default=1e-4)
    features: str = struct.field(pytree_node=False, default="v1")

    @classmethod
    def create(
        cls,
        key: jax.Array,
        *,
        width: int = 128,
        time_aware: bool = False,
        epsilon: float | None = 0.2,
    ) -> LPO:
        """An LPO that *is* its start, PPO or (`epsilon=None`) no drift, up to the slack.

        The hidden layer is random and the output layer zero. Were both zero, as in the original code, the network would be
        an even function of its weights: both members of an antithetic pair would be the same drift, and the first
        generation would hold no information.
        """
        num_features = FEATURES["v1"][1] * (2 if time_aware else 1)
        hidden = jax.random.normal(key, (num_features, width)) / num_features**0.5
        return cls(hidden, jnp.zeros(width), width, time_aware, epsilon)

    def timed(self) -> LPO:
        """The same drift as a TA-LPO: its weights of n/N x are zero. Itself, if it is time-aware already."""
        if self.time_aware:
            return self
        return self.replace(hidden=jnp.concatenate([self.hidden, jnp.zeros_like(self.hidden)]), time_aware=True)

    @property
    def needs_progress(self) -> bool:  # type: ignore[override]
        return self.time_aware

    def __call__(self, log_ratio, advantage, progress=None):
        x = FEATURES[self.features][0](log_ratio, advantage)
        if self.time_aware:
            fraction = jnp.broadcast_to(require(progress, "TA-LPO").fraction, log_ratio.shape)
            x = jnp.concatenate([x, fraction[..., None] * x], axis=-1)
        learned = jnp.tanh(x @ self.hidden) @ self.out
        if self.epsilon is not None:
            learned = learned + Clip(self.epsilon)(log_ratio, advantage)
        return jax.nn.relu(learned - self.slack)

    def constant_from(self, advantage):
        """With the clip: where the features are constant and the relu is open for any value of the network."""
        if self.epsilon is None:
            return super().constant_from(advantage)
        return constant_from_gain(self.epsilon * advantage + self.slack + jnp.abs(self.out).sum(), advantage)

    def validate(self) -> None:
        """Raise ValueError with a sentence if the fields do not fit together, as in a file made by hand."""
        if self.features not in FEATURES:
            raise ValueError(
                f"this LPO was searched with feature map {self.features!r}, and this version knows {sorted(FEATURES)}: "
                "update learned_objectives."
            )
        rows = FEATURES[self.features][1] * (2 if self.time_aware else 1)
        expected = ((rows, self.width), (self.width,))
        if (jnp.shape(self.hidden), jnp.shape(self.out)) != expected:
            raise ValueError(
                f"an LPO of width {self.width} has layers of shapes {expected[0]} and {expected[1]}, "
                f"and these are {jnp.shape(self.hidden)} and {jnp.shape(self.out)}."
            )
