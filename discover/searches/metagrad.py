"""Meta-gradients: how the objective's leaves change what an agent becomes, through a window of its updates.

A member is an agent in the middle of its life. Each meta-step, every member makes K updates under the objective. The
updated agent then makes one more rollout. An estimator turns that rollout into a loss of the objective, whose gradient goes back
through the K updates. Lives roll on from one window to the next, and begin at different times.

References: Xu et al. 2018, arXiv:1805.09801; Oh et al. 2020, arXiv:2007.08794; Jackson et al. 2023, arXiv:2310.02782.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from discover.agents import rollout as ro
from discover.agents.agent import Agent, AgentState, diverged
from discover.agents.config import AgentConfig
from discover.agents.mixed_mode import require_mode
from discover.devices.plan import Plan
from discover.plugins import blame
from discover.searches.config import SearchConfig
from discover.searches.curriculum import AssignedTask
from discover.searches.estimators import ESTIMATORS, EVERY_UPDATE, OWN_CRITIC
from discover.searches.outer_critic import Table, fit_table
from envs import plugs, spaces
from learned_objectives import Objective, Rollout
from learned_objectives.mirror import generalised_advantage, normalise
from learned_objectives.recurrent import STATES

PyTree = Any

LOOK = 2_000_000_001  # folded into an agent's key, where its updates fold their number


@dataclass(frozen=True)
class MetaGradConfig(SearchConfig):
    """Meta-gradients over members whose lives roll on. The defaults are GROOVE's (Jackson et al. 2023, tables 2 and 3)."""

    chunk: int | Literal["auto"] = "auto"  # members that a device takes through a window at once; auto: what suits it
    estimator: str = "debiased"  # of the meta-gradient: debiased, standard, bootstrapped, mixed, or yours
    members: int = 512  # agents in mid-life, side by side, in each environment
    window: int = 5  # K, updates that one meta-gradient goes through
    learning_rate: float = 1e-4  # of Adam on the objective's leaves
    max_grad_norm: float | None = None  # of the meta-gradient; None: as it is
    gamma: float = 0.99  # of the outer return, per environment step
    gae_lambda: float = 0.95  # of the outer advantage
    critic_learning_rate: float = 1e-2  # of Adam on outer critics that are networks; tables have none
    critic_epochs: int = 4  # gradient steps of the outer critic per meta-step; of a table, sweeps
    entropy_coef: float = 0.05  # b0, keeps the agents' policies random
    prediction_entropy_coef: float = 0.001  # b1, and their predictions, where the objective has any
    policy_target_coef: float = 0.005  # b2, keeps its targets small
    prediction_target_coef: float = 0.001  # b3
    bootstrap_updates: int = 4  # L, how far ahead of the agent the target of "bootstrapped" is
    differentiation: Literal["reverse", "mixed"] = "reverse"  # through gradient steps; mixed: forward over reverse mode
    mixing: float = 1.0  # of "mixed": the loss after k of the K updates has a weight in proportion to mixing ** (K - k)

    unit: ClassVar[str] = "members"
    whole_chunks: ClassVar[bool] = True
    whole_lives: ClassVar[bool] = False
    times_programs: ClassVar[bool] = True

    def __post_init__(self):
        ESTIMATORS.require(self.estimator)
        require_mode(self.differentiation)
        if self.chunk is None:
            raise ValueError("search.chunk must be at least 1, or 'auto', and is None.")
        self.check_chunk()
        for name in ("members", "window", "critic_epochs", "bootstrap_updates"):
            if getattr(self, name) < 1:
                raise ValueError(f"search.{name} must be at least 1, and is {getattr(self, name)}.")
        for name in ("learning_rate", "critic_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"search.{name} must be positive and finite, and is {getattr(self, name)}.")
        for name in ("gamma", "gae_lambda", "mixing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"search.{name} must be in [0, 1], and is {getattr(self, name)}.")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"search.max_grad_norm must be positive, or None, and is {self.max_grad_norm}.")
        for name in ("entropy_coef", "prediction_entropy_coef", "policy_target_coef", "prediction_target_coef"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"search.{name} must be finite, and is {getattr(self, name)}.")
        if self.chunk != "auto" and self.members % self.chunk:
            raise ValueError(f"search.members must be a multiple of its chunk, {self.chunk}, and is {self.members}.")

    @property
    def items(self) -> int:
        return self.members

    def build(self, problem):
        return plugs.resolve("discover.searches.gradient_search:GradientSearch")(self, problem)

    def usual_chunk(self, plan: Plan, *, fills_cache: bool) -> int | None:
        """All members where memory is the limit, because the number of devices is not known here."""
        return self.members if plan.chunk is None else super().usual_chunk(plan, fills_cache=fills_cache)

    def evaluation_chunk(self, plan: Plan) -> int | None:
        return plan.chunk


def require_feedforward(agent: AgentConfig) -> None:
    """ValueError where agents have a recurrent network."""
    if agent.recurrent:
        raise ValueError(
            f"a meta-gradient goes through single steps of the networks, and agent.network {agent.network!r} learns from "
            "sequences: search by evolution, or choose a network that is not recurrent."
        )


class Tally(struct.PyTreeNode):
    """Running sums over the outer rollouts of a life, for the scores of a curriculum."""

    positive: jax.Array  # f32[], of the mean of max(A, 0)
    absolute: jax.Array  # f32[], of the mean of |A|
    value: jax.Array  # f32[], of the mean of V(s)
    count: jax.Array  # f32[]
    max_return: jax.Array  # f32[], of every episode that finished in this life, and the best known before

    @classmethod
    def create(cls, max_return: jax.Array) -> Tally:
        zero = jnp.float32(0)
        return cls(zero, zero, zero, zero, max_return)


class Member(struct.PyTreeNode):
    """An agent in mid-life. Arrays only."""

    state: AgentState
    drawn: AssignedTask  # its task, and where that came from
    critic: PyTree  # parameters of its outer critic, V(s) under the outer discount
    critic_opt: PyTree  # of Adam; where the critic is a table, the two counts of `outer_critic.Table`
    stop: jax.Array  # i32[], updates after which it is replaced: its lifetime, or less for the very first
    tally: Tally


class Window(NamedTuple):
    """What an estimator sees."""

    before: AgentState  # at the start of the window
    after: AgentState  # K updates later; a function of the objective
    metrics: dict[str, jax.Array]  # of the K updates
    outer: Rollout  # a rollout of `after`; its critic is the outer one, or the agent's own under "standard"
    advantage: jax.Array  # f32[T, B], of the outer return, normalised
    states: AgentState | None = None  # after each of the K updates, leaves [K, ...]; of `EVERY_UPDATE` alone


@dataclass(frozen=True)
class MetaGrad:
    """Windows of one agent's life, and their gradients."""

    config: MetaGradConfig
    agent: Agent

    @property
    def rollouts(self) -> int:
        """Of a member in one window."""
        more = {"bootstrapped": self.config.bootstrap_updates, "mixed": self.config.window - 1}
        return self.config.window + 1 + more.get(self.config.estimator, 0)

    @cached_property
    def outer(self) -> Agent:
        """The same agent with a critic of one number: whose networks and rollouts the outer critic uses."""
        return dataclasses.replace(self.agent, critic_width=1, heads=None, target_share=None)

    @property
    def tabular(self) -> bool:
        """Whether observations number states, so that critics are tables."""
        return isinstance(self.agent.env.observation_space(self.agent.env.default_params), spaces.Discrete)

    @cached_property
    def critic_optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.config.critic_learning_rate)

    def birth(self, drawn: AssignedTask, key: jax.Array, stop: jax.Array) -> Member:
        init_key, critic_key = jax.random.split(key)
        critic = self.outer.networks.init(critic_key)["critic"]
        state = self.agent.init(drawn.task, init_key)
        episodes = state.env.episodes.replace(best=jnp.float32(-jnp.inf))
        return Member(
            state=state.replace(env=state.env.replace(episodes=episodes)),
            drawn=drawn,
            critic=critic,
            critic_opt=(jnp.float32(0), jnp.float32(0)) if self.tabular else self.critic_optimizer.init(critic),
            stop=stop,
            tally=Tally.create(drawn.max_return),
        )

    def window(self, objective: Objective, member: Member) -> tuple[jax.Array, tuple[Member, dict[str, jax.Array]]]:
        """K updates, and a rollout after them: (meta-loss, (the member after them, metrics)).

        The gradient of the meta-loss with respect to the objective is the meta-gradient. Every update is computed again on
        the way back, but for the states of a recurrent objective, so that memory holds K agents and one rollout.
        """
        task, before = member.drawn.task, member.state
        estimator = ESTIMATORS[self.config.estimator]

        @partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(STATES))
        def update(state: AgentState, _):
            state, _, metrics = self.agent.step(objective, task, state)
            return state, (jax.tree.map(jnp.mean, metrics), state if estimator in EVERY_UPDATE else None)

        after, (metrics, states) = jax.lax.scan(update, before, None, length=self.config.window)
        env, outer = self._look(objective, jax.lax.stop_gradient(after), member, own_critic=estimator in OWN_CRITIC)
        advantage = generalised_advantage(outer, gamma=self.config.gamma, gae_lambda=self.config.gae_lambda)
        seen = Window(before, after, metrics, outer, jax.lax.stop_gradient(normalise(advantage)), states)
        with blame(estimator, f"the estimator {self.config.estimator}"):
            loss = estimator(self, objective, member, seen)
        loss = self._checked(estimator, loss)
        loss = loss + self.regulariser(seen)
        critic, critic_opt, critic_loss = self._fit_critic(member, after, outer, advantage)
        on = jax.lax.stop_gradient(after.replace(env=env))
        tally = _count(member.tally, outer, advantage, env.episodes)
        member = member.replace(state=on, critic=critic, critic_opt=critic_opt, tally=tally)
        shown = {name: value.mean() for name, value in metrics.items()}
        shown |= {"meta_loss": loss, "critic_loss": critic_loss, "reward": outer.reward.mean()}
        return loss, (member, shown | {"diverged": diverged(on) | ~jnp.isfinite(critic_loss)})

    def _checked(self, estimator: Any, loss: Any) -> jax.Array:
        """What an estimator returns, if it is a loss. ValueError for anything else, such as the gradient itself."""
        is_array = isinstance(loss, int | float | np.ndarray | np.generic | jax.Array)
        if is_array and jnp.shape(loss) == () and jnp.issubdtype(jnp.result_type(loss), jnp.floating):
            return jnp.asarray(loss)
        shown = f"{jnp.result_type(loss)}{list(jnp.shape(loss))}" if is_array else f"a {type(loss).__name__}"
        raise ValueError(
            f"the estimator {self.config.estimator} must return f32[], a loss whose gradient is the meta-gradient, and returns "
            f"{shown} ({plugs.where(estimator)})."
        )

    def _look(
        self, objective: Objective, after: AgentState, member: Member, *, own_critic: bool = False
    ) -> tuple[ro.EnvCarry, Rollout]:
        """A rollout of the updated agent, on keys that none of its updates uses."""
        keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(after.key, LOOK), after.num_updates), 3)
        if own_critic:
            return self.agent.rollout(objective, member.drawn.task, after, list(keys))
        params = {"actor": after.params["actor"], "critic": member.critic}
        return self.outer.rollout(objective, member.drawn.task, after.replace(params=params), list(keys))

    def policy_loss(self, state: AgentState, outer: Rollout, advantage: jax.Array) -> jax.Array:
        """-mean[log pi(a|s) A] over a rollout of this very policy."""
        policy = self.agent.networks.actor(state.params, ro.normalised_obs(state.env, outer.obs))
        return -(policy.log_prob(outer.action) * advantage).mean()

    def regulariser(self, seen: Window) -> jax.Array:
        """-b0 H(pi) - b1 H(y) + b2 mean[pi_hat^2] + b3 mean[sum y_hat^2]: entropies of the updated agent, on its rollout;
        squares of the targets over the window. For an objective that predicts no distribution only b0 counts."""
        c = self.config
        obs = ro.normalised_obs(seen.after.env, seen.outer.obs)
        entropy = self.agent.networks.actor(seen.after.params, obs).entropy().mean()
        if "prediction_entropy" not in seen.metrics:
            return -c.entropy_coef * entropy
        log_y = jax.nn.log_softmax(self.agent.networks.critic(seen.after.params, obs))
        return (
            -c.entropy_coef * entropy
            + c.prediction_entropy_coef * (jnp.exp(log_y) * log_y).sum(-1).mean()
            + c.policy_target_coef * seen.metrics["policy_target_square"].mean()
            + c.prediction_target_coef * seen.metrics["prediction_target_square"].mean()
        )

    def _fit_critic(self, member: Member, after: AgentState, outer: Rollout, advantage: jax.Array):
        """The outer critic fitted to its own advantages: (parameters, optimizer state, error before). A table in closed form, a
        network by gradient steps."""
        if self.tabular:
            c, seen = self.config, jax.lax.stop_gradient(outer)
            table = Table(member.critic["params"]["rows"][:, 0], *member.critic_opt)
            table, error = fit_table(table, seen, gamma=c.gamma, gae_lambda=c.gae_lambda, sweeps=c.critic_epochs)
            return {"params": {"rows": table.values[:, None]}}, tuple(table[1:]), error
        target = jax.lax.stop_gradient(advantage + outer.critic[..., 0])
        obs = jax.lax.stop_gradient(ro.normalised_obs(after.env, outer.obs))

        def error(params):
            value = self.outer.networks.critic({"critic": params}, obs)[..., 0]
            return 0.5 * ((value - target) ** 2).mean()

        def step(carry, _):
            params, opt_state = carry
            loss, grads = jax.value_and_grad(error)(params)
            updates, opt_state = self.critic_optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), loss

        carry = jax.lax.stop_gradient((member.critic, member.critic_opt))
        (params, opt_state), losses = jax.lax.scan(step, carry, None, length=self.config.critic_epochs)
        return params, opt_state, losses[0]

    def gradient(self, objective: Objective, members: Member) -> tuple[PyTree, Member, dict[str, jax.Array]]:
        """Of members [n] side by side: (the sum of their meta-gradients, the members after it, metrics [n])."""

        def total(objective):
            loss, out = jax.vmap(self.window, in_axes=(None, 0))(objective, members)
            return loss.sum(), out

        grads, (members, metrics) = jax.grad(total, has_aux=True)(objective)
        return grads, members, metrics


def _count(tally: Tally, outer: Rollout, advantage: jax.Array, episodes: ro.Episodes) -> Tally:
    return Tally(
        positive=tally.positive + jax.nn.relu(advantage).mean(),
        absolute=tally.absolute + jnp.abs(advantage).mean(),
        value=tally.value + outer.critic[..., 0].mean(),
        count=tally.count + 1.0,
        max_return=jnp.maximum(tally.max_return, episodes.best),
    )
