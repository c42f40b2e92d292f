"""Population-based training: its settings, and its two operations on a population, exploit and explore."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from discover.searches.config import SearchConfig
from discover.searches.evolution import centred_rank
from envs import plugs

PyTree = Any


@dataclass(frozen=True)
class PBTConfig(SearchConfig):
    """Population-based training (Jaderberg et al. 2017, arXiv:1711.09846): agents that copy better ones while they learn."""

    population: int = 16  # members, each an agent in every environment, an objective and a learning rate
    interval: int = 8  # updates of a member from one exploit and explore to the next; a step of the search
    share: float = 0.25  # of the members that copy a random one of an equally large best share; 0: none does
    start_sigma: float = 0.5  # size of the perturbation that makes the first objectives; member 0 is not perturbed
    sigma: float = 0.2  # size of the perturbation of a copied objective
    perturbation: Literal["additive", "multiplicative"] = "additive"  # leaves + sigma z, or leaves e^(sigma z)
    rate_spread: float = 4.0  # the first learning rates are log-uniform within this factor of the environment's
    rate_factor: float = 1.2  # by which a copied learning rate is multiplied or divided; the paper: 1.2 or 0.8
    smoothing: float = 0.5  # weight of a member's earlier returns in its smoothed return

    unit: ClassVar[str] = "members"
    whole_chunks: ClassVar[bool] = True
    whole_lives: ClassVar[bool] = False

    def __post_init__(self):
        self.check_chunk()
        if self.population < 2:
            raise ValueError(
                f"population must be at least 2, because members copy one another, and is {self.population}."
            )
        if self.interval < 1:
            raise ValueError(f"interval must be at least 1 update, and is {self.interval}.")
        if not 0 <= self.share <= 0.5:
            raise ValueError(f"share must be in [0, 0.5], and is {self.share}: as many members copy as are copied.")
        for name in ("start_sigma", "sigma"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, and is {getattr(self, name)}.")
        if self.perturbation not in PERTURBATIONS:
            raise ValueError(f"perturbation must be {' or '.join(PERTURBATIONS)}, and is {self.perturbation!r}.")
        for name in ("rate_spread", "rate_factor"):
            if not 1 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 1 and finite, and is {getattr(self, name)}.")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), and is {self.smoothing}.")

    @property
    def items(self) -> int:
        return self.population

    @property
    def copies(self) -> int:
        """Members of the worst share, and of the best."""
        return math.ceil(self.share * self.population)

    def build(self, problem):
        return plugs.resolve("discover.searches.pbt_search:PBTSearch")(self, problem)


def additive(key: jax.Array, leaf: jax.Array, sigma: float) -> jax.Array:
    """leaf + sigma z, z ~ N(0, 1) for every number."""
    return leaf + sigma * jax.random.normal(key, leaf.shape)


def multiplicative(key: jax.Array, leaf: jax.Array, sigma: float) -> jax.Array:
    """leaf e^(sigma z), z ~ N(0, 1) for every number. A zero stays zero."""
    return leaf * jnp.exp(sigma * jax.random.normal(key, leaf.shape))


PERTURBATIONS: dict[str, Callable[[jax.Array, jax.Array, float], jax.Array]] = {
    "additive": additive,
    "multiplicative": multiplicative,
}


def explored(key: jax.Array, objective: PyTree, *, kind: str, sigma: float) -> PyTree:
    """An objective whose leaves are all perturbed. `kind`: one of PERTURBATIONS."""
    leaves, structure = jax.tree.flatten(objective)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [PERTURBATIONS[kind](k, x, sigma) for k, x in zip(keys, leaves, strict=True)])


def smoothed(before: jax.Array, returned: jax.Array, *, weight: float) -> jax.Array:
    """f32[P, E]: weight before + (1 - weight) returned; `returned` where there is no earlier one. NaN where an agent diverged."""
    return jnp.where(jnp.isfinite(before), weight * before + (1.0 - weight) * returned, returned)


def scores(returns: jax.Array) -> jax.Array:
    """f32[P]: the mean over environments of a member's rank by return, in [-0.5, 0.5]; minus infinity where an agent of it
    diverged. Returns f32[P, E]."""
    ranks = jax.vmap(centred_rank, in_axes=1, out_axes=1)(returns).mean(-1)
    return jnp.where(jnp.isfinite(returns).all(-1), ranks, -jnp.inf)


def exploited(key: jax.Array, score: jax.Array, *, copies: int) -> jax.Array:
    """i32[P]: the member from which each one continues, by truncation selection: itself, or the one that it copies.

    Each of the `copies` members with the lowest score, and each that diverged, takes a random one of the `copies` with the
    highest, and copies it if its score is higher. Reference: Jaderberg et al. 2017, section 4.1.1, arXiv:1711.09846.
    """
    count = score.shape[0]
    order = jnp.argsort(-score, stable=True)
    place = jnp.zeros(count, jnp.int32).at[order].set(jnp.arange(count, dtype=jnp.int32))
    alive = jnp.isfinite(score)
    best = jnp.clip(alive.sum(), 1, max(copies, 1))
    chosen = order[jax.random.randint(key, (count,), 0, best)]
    loses = ((place >= count - copies) | ~alive) & (copies > 0)
    return jnp.where(loses & (score[chosen] > score), chosen, jnp.arange(count)).astype(jnp.int32)
