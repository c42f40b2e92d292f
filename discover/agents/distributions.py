"""The distributions a policy can have over actions."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from learned_objectives.core import INVALID


class Categorical(NamedTuple):
    """A policy over `A` actions. One action is i32[]."""

    logits: jax.Array  # f32[..., A], not normalised: to act, nothing else is needed

    @property
    def log_probs(self) -> jax.Array:
        """f32[..., A]."""
        return jax.nn.log_softmax(self.logits)

    @staticmethod
    def noise(key: jax.Array, shape: tuple[int, ...], size: int) -> jax.Array:
        """What `sample` needs, f32[*shape, A], drawn for a whole rollout at once."""
        return jax.random.gumbel(key, (*shape, size), jnp.float32)

    def sample(self, noise: jax.Array) -> jax.Array:
        return jnp.argmax(self.logits + noise, axis=-1)

    def mode(self) -> jax.Array:
        return jnp.argmax(self.logits, axis=-1)

    def log_prob(self, action: jax.Array) -> jax.Array:
        # A one-hot sum, not a gather: its gradient is a product too, where a gather's is a slow scatter.
        log_probs = self.log_probs
        chosen = jax.nn.one_hot(action, log_probs.shape[-1], dtype=log_probs.dtype)
        return (log_probs * chosen).sum(-1)

    def entropy(self) -> jax.Array:
        log_probs = self.log_probs
        return -(jnp.exp(log_probs) * log_probs).sum(-1)

    def relative_entropy(self) -> jax.Array:
        """The entropy over that of the uniform policy: f32[...] in [0, 1]."""
        return self.entropy() / math.log(max(self.logits.shape[-1], 2))

    def kl(self, other: Categorical) -> jax.Array:
        """KL(self || other): f32[...]."""
        log_probs = self.log_probs
        return (jnp.exp(log_probs) * (log_probs - other.log_probs)).sum(-1)


class MaskedCategorical(Categorical):
    """A policy over the valid ones of `A` actions. The others have probability 0 and no part in entropies."""

    @classmethod
    def of(cls, policy: Categorical, mask: jax.Array) -> MaskedCategorical:
        """`mask` bool[..., A]. Where no action is valid, all have the same probability."""
        return cls(jnp.where(mask, policy.logits, INVALID))

    def relative_entropy(self) -> jax.Array:
        """The entropy over that of the uniform policy on the valid actions: f32[...] in [0, 1]."""
        return self.entropy() / jnp.log(jnp.maximum(valid(self.logits), 2.0))


def valid(logits: jax.Array) -> jax.Array:
    """f32[...]: how many actions are valid."""
    return (logits > INVALID / 2).sum(-1).astype(jnp.float32)


class MultiCategorical(struct.PyTreeNode):
    """A policy over K independent choices, a product of categoricals. One action is i32[K]."""

    logits: jax.Array  # f32[..., sum of sizes], of the choices one after another
    sizes: tuple[int, ...] = struct.field(pytree_node=False)  # options of each choice

    @property
    def choices(self) -> list[Categorical]:
        ends = np.cumsum(self.sizes)[:-1]
        return [Categorical(logits) for logits in jnp.split(self.logits, ends, axis=-1)]

    @staticmethod
    def noise(key: jax.Array, shape: tuple[int, ...], size: int) -> jax.Array:
        return Categorical.noise(key, shape, size)

    def sample(self, noise: jax.Array) -> jax.Array:
        return self.replace(logits=self.logits + noise).mode()

    def mode(self) -> jax.Array:
        return jnp.stack([choice.mode() for choice in self.choices], axis=-1)

    def log_prob(self, action: jax.Array) -> jax.Array:
        return jnp.stack([choice.log_prob(action[..., k]) for k, choice in enumerate(self.choices)]).sum(0)

    def entropy(self) -> jax.Array:
        return jnp.stack([choice.entropy() for choice in self.choices]).sum(0)

    def relative_entropy(self) -> jax.Array:
        """The entropy over that of the uniform policy: f32[...] in [0, 1]."""
        return self.entropy() / max(sum(math.log(size) for size in self.sizes), math.log(2))

    def kl(self, other: MultiCategorical) -> jax.Array:
        """KL(self || other): f32[...]."""
        return jnp.stack([a.kl(b) for a, b in zip(self.choices, other.choices, strict=True)]).sum(0)


class MaskedMultiCategorical(MultiCategorical):
    """A policy over the valid options of K independent choices."""

    @classmethod
    def of(cls, policy: MultiCategorical, mask: jax.Array) -> MaskedMultiCategorical:
        """`mask` bool[..., sum of sizes], of the choices one after another."""
        return cls(jnp.where(mask, policy.logits, INVALID), policy.sizes)

    def relative_entropy(self) -> jax.Array:
        """The entropy over that of the uniform policy on the valid options: f32[...] in [0, 1]."""
        most = sum(jnp.log(jnp.maximum(valid(choice.logits), 1.0)) for choice in self.choices)
        return self.entropy() / jnp.maximum(most, math.log(2))


MASKED = {Categorical: MaskedCategorical, MultiCategorical: MaskedMultiCategorical}


class Gaussian(NamedTuple):
    """A policy over R^A with independent coordinates. One action is f32[A], before any clipping to the space's bounds."""

    mean: jax.Array  # f32[..., A]
    log_std: jax.Array  # f32[A]

    @staticmethod
    def noise(key: jax.Array, shape: tuple[int, ...], size: int) -> jax.Array:
        return jax.random.normal(key, (*shape, size), jnp.float32)

    def sample(self, noise: jax.Array) -> jax.Array:
        return self.mean + jnp.exp(self.log_std) * noise

    def mode(self) -> jax.Array:
        return self.mean

    def log_prob(self, action: jax.Array) -> jax.Array:
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return (-0.5 * z**2 - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> jax.Array:
        entropy = (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
        return jnp.broadcast_to(entropy, self.mean.shape[:-1])

    def relative_entropy(self) -> jax.Array:
        """The geometric mean of the standard deviations, at most 1, their value at the start: f32[...] in [0, 1]. The entropy
        itself has no maximum and depends on units."""
        return jnp.broadcast_to(jnp.minimum(jnp.exp(self.log_std.mean(-1)), 1.0), self.mean.shape[:-1])

    def kl(self, other: Gaussian) -> jax.Array:
        """KL(self || other): f32[...]."""
        gap = (self.mean - other.mean) * jnp.exp(-other.log_std)
        shrink = jnp.exp(2 * (self.log_std - other.log_std))
        return (other.log_std - self.log_std + 0.5 * (shrink + gap**2 - 1.0)).sum(-1)
