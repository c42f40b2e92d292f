"""The meta-gradient through whole lives: how the objective's leaves change the return of the agent at the end.

An agent is trained from its first update to its last. Reverse mode goes back through all of them, with checkpoints whose number
grows with the logarithm of the length of the life (`checkpointed_scan`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from discover.agents import rollout as ro
from discover.agents.agent import Agent, AgentState, Task, diverged, stretches
from discover.agents.mixed_mode import require_mode
from discover.searches.checkpointing import checkpointed_scan
from discover.searches.config import SearchConfig
from discover.searches.metagrad import LOOK
from envs import plugs
from learned_objectives import Objective
from learned_objectives.mirror import generalised_advantage, normalise
from learned_objectives.recurrent import STATES

PyTree = Any


@dataclass(frozen=True)
class WholeLifeConfig(SearchConfig):
    """Meta-gradients through whole lives, from the first update of an agent to its last."""

    lives: int = 8  # agents of a meta-step, in each environment
    points: int = 1  # moments of a life whose policy gradients are averaged, evenly spaced; the last is its end
    base: int = 8  # of the recursive checkpoints: a smaller one stores less and computes more often
    differentiation: Literal["mixed", "reverse"] = "mixed"  # through gradient steps; mixed: forward over reverse mode
    learning_rate: float = 0.01  # of Adam on the objective's leaves
    max_life_grad_norm: float | None = 1.0  # of the meta-gradient of one life; None: as it is
    max_grad_norm: float | None = None  # of the mean over lives; None: as it is
    gamma: float = 0.99  # of the outer return, per environment step
    gae_lambda: float = 0.95  # of the outer advantage

    unit: ClassVar[str] = "lives"
    whole_chunks: ClassVar[bool] = True
    times_programs: ClassVar[bool] = True

    def __post_init__(self):
        self.check_chunk()
        require_mode(self.differentiation)
        for name, least in (("lives", 1), ("points", 1), ("base", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"search.{name} must be at least {least}, and is {getattr(self, name)}.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"search.learning_rate must be positive and finite, and is {self.learning_rate}.")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"search.{name} must be in [0, 1], and is {getattr(self, name)}.")
        for name in ("max_life_grad_norm", "max_grad_norm"):
            if (bound := getattr(self, name)) is not None and not bound > 0:
                raise ValueError(f"search.{name} must be positive, or None, and is {bound}.")
        if isinstance(self.chunk, int) and self.lives % self.chunk:
            raise ValueError(f"search.lives must be a multiple of its chunk, {self.chunk}, and is {self.lives}.")

    @property
    def items(self) -> int:
        return self.lives

    def build(self, problem):
        return plugs.resolve("discover.searches.whole_life_search:WholeLifeSearch")(self, problem)


class LifeGradient(NamedTuple):
    """What one life says about the objective; side by side, leaves have a leading axis."""

    gradient: PyTree  # of the meta-loss with respect to the objective; zero where it is not finite
    norm: jax.Array  # f32[], of that gradient before any clipping; may be infinite
    finite: jax.Array  # bool[], whether the gradient is
    loss: jax.Array  # f32[], the meta-loss
    reward: jax.Array  # f32[], per environment step, mean over the rollouts at the points
    diverged: jax.Array  # bool[], the agent at the end


@dataclass(frozen=True)
class WholeLife:
    """Lives of one agent, and their gradients with respect to the objective."""

    config: WholeLifeConfig
    agent: Agent
    updates: int  # N, of the longest life; an agent does not change after its own lifetime

    def __post_init__(self):
        if self.config.points > self.updates:
            raise ValueError(
                f"search.points must be at most the {self.updates} updates of a life, and is {self.config.points}."
            )

    def loss(
        self, objective: Objective, task: Task, state: AgentState
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """The meta-loss of the life of a newborn agent, whose gradient is the meta-gradient: (f32[], (mean reward f32[], whether
        the agent diverged bool[])).

            L(eta) = -1/P sum_p mean[log pi_p(a|s) A(s, a)],    pi_p the policy after the first n_p updates under eta

        with n_P = N. The mean is over a new rollout of pi_p, on keys that no update uses. The advantages A are those of the
        agent's own critic, normalised over the rollout; no gradient enters them. Sampled actions and states are constants: how
        eta changes what later rollouts meet is not in the gradient (Al-Shedivat et al. 2018, arXiv:1710.03641, has the
        missing term).
        """
        stops = jnp.asarray(stretches(self.updates, self.config.points)[1:])

        def update(state: AgentState, index: jax.Array):
            state = self.agent.step(objective, task, state)[0]
            look = jax.checkpoint(lambda state: self._look(objective, task, state), prevent_cse=False)
            nothing = lambda _: (jnp.zeros((), dtype), jnp.zeros((), dtype))
            # The index is the same in all lives side by side, so that this remains a branch.
            return state, jax.lax.cond((index + 1 == stops).any(), look, nothing, state)

        dtype = jnp.result_type(*jax.tree.leaves(state.params))
        state, (losses, rewards) = checkpointed_scan(
            update,
            state,
            length=self.updates,
            base=self.config.base,
            policy=jax.checkpoint_policies.save_only_these_names(STATES),
        )
        share = 1.0 / self.config.points
        return share * losses.sum(), (share * rewards.sum(), diverged(state))

    def _look(self, objective: Objective, task: Task, state: AgentState) -> tuple[jax.Array, jax.Array]:
        """(the meta-loss at this moment of a life, the mean reward of its rollout)."""
        frozen = jax.lax.stop_gradient(state)
        keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(state.key, LOOK), state.num_updates), 3)
        _, outer = jax.lax.stop_gradient(self.agent.rollout(objective, task, frozen, list(keys)))
        advantage = generalised_advantage(outer, gamma=self.config.gamma, gae_lambda=self.config.gae_lambda)
        policy = self.agent.networks.actor(state.params, ro.normalised_obs(frozen.env, outer.obs))
        loss = -(policy.log_prob(outer.action) * normalise(advantage)).mean()
        return loss, outer.reward.mean().astype(loss.dtype)

    def gradient(self, objective: Objective, task: Task, key: jax.Array) -> LifeGradient:
        """Of one life."""
        program = jax.value_and_grad(self.loss, has_aux=True)
        (loss, (reward, broken)), gradient = program(objective, task, self.agent.init(task, key))
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(norm)
        return LifeGradient(
            jax.tree.map(lambda g: jnp.where(finite, g, 0), gradient), norm, finite, loss, reward, broken
        )


def clipped(found: LifeGradient, bound: float | None) -> PyTree:
    """The gradient of one life, shortened to this norm where it is longer."""
    if bound is None:
        return found.gradient
    scale = jnp.where(found.finite, jnp.minimum(1.0, bound / jnp.maximum(found.norm, 1e-30)), 0.0)
    return jax.tree.map(lambda g: scale * g, found.gradient)
