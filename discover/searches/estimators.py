"""Estimators of the meta-gradient: what a window of an agent's updates says about the objective.

An estimator is a function (search, objective, member, seen) -> f32[], a loss whose gradient is the meta-gradient. `search` is the
`MetaGrad` of the window, `member` the `Member` at its start, and `seen` the `Window`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from discover.agents import rollout as ro
from discover.agents.agent import AgentState
from discover.plugins import Registry
from learned_objectives import Objective
from learned_objectives.mirror import generalised_advantage, normalise


def debiased(search: Any, objective: Objective, member: Any, seen: Any) -> jax.Array:
    """The policy gradient of the updated agent. A separate critic of the outer return gives the advantages.

    Reference: Bonnet et al. 2022, arXiv:2211.10550: the agent's critic, trained under another discount, would bias it.
    """
    return search.policy_loss(seen.after, seen.outer, seen.advantage)


def standard(search: Any, objective: Objective, member: Any, seen: Any) -> jax.Array:
    """The same policy gradient, of a window whose advantages came from the agent's own critic: for objectives that have a
    value. Reference: Xu et al. 2018, arXiv:1805.09801."""
    return debiased(search, objective, member, seen)


def bootstrapped(search: Any, objective: Objective, member: Any, seen: Any) -> jax.Array:
    """KL(target || agent) over the states of the rollout. The target is the agent after L - 1 more updates and one step of the
    policy gradient, with its own optimiser, clipping and annealed rate. No gradient enters the target.

    Reference: Flennerhag et al. 2022, arXiv:2109.04504.
    """
    agent, task = search.agent, member.drawn.task
    frozen, ahead = jax.lax.stop_gradient((objective, seen.after))

    def update(state: AgentState, _):
        return agent.step(frozen, task, state)[0], None

    ahead, _ = jax.lax.scan(update, ahead, None, length=search.config.bootstrap_updates - 1)
    _, outer = search._look(frozen, ahead, member)
    advantage = normalise(generalised_advantage(outer, gamma=search.config.gamma, gae_lambda=search.config.gae_lambda))

    def loss(actor):
        params = ahead.params | {"actor": actor}
        return search.policy_loss(ahead.replace(params=params), outer, advantage)

    actor = ahead.params["actor"]
    grads = jax.tree.map(jnp.zeros_like, ahead.params) | {"actor": jax.grad(loss)(actor)}
    direction = agent.learner.direction(grads, ahead.opt_state, ahead.params)
    rate = agent.rate(task, agent.progress(task, ahead))
    target = jax.tree.map(lambda p, d: p - rate * d, ahead.params, direction)
    obs = ro.normalised_obs(seen.after.env, seen.outer.obs)
    target = jax.lax.stop_gradient(agent.networks.actor(target, obs))
    return target.kl(agent.networks.actor(seen.after.params, obs)).mean()


def mixed(search: Any, objective: Objective, member: Any, seen: Any) -> jax.Array:
    """The policy gradients of the agent after each update of the window, mixed:

        sum_k w_k L_k,    w_k = m^(K - k) / sum_j m^(K - j),    k = 1, ..., K,    m = `search.mixing`

    where L_k is the loss of `debiased` on a rollout of the agent after k updates. Few updates have less variance, many have less
    bias. m = 0 is `debiased`, m = 1 the plain mean. Each L_k takes a rollout.

    Reference: Bonnet et al. 2021, arXiv:2111.00206, which mixes the meta-gradients of several numbers of updates. The geometric
    weights are ours.
    """
    c = search.config
    weights = np.array([c.mixing ** (c.window - k) for k in range(1, c.window + 1)])
    weights /= weights.sum()

    @jax.checkpoint
    def loss(state: AgentState):
        _, outer = search._look(objective, jax.lax.stop_gradient(state), member)
        advantage = generalised_advantage(outer, gamma=c.gamma, gae_lambda=c.gae_lambda)
        return search.policy_loss(state, outer, jax.lax.stop_gradient(normalise(advantage)))

    last = debiased(search, objective, member, seen)
    if c.window == 1:
        return last
    earlier = jax.lax.map(loss, jax.tree.map(lambda x: x[:-1], seen.states))
    return weights[-1] * last + (weights[:-1].astype(earlier.dtype) * earlier).sum()


OWN_CRITIC = (standard,)  # are shown advantages by the agent's own critic, and not by the outer one
EVERY_UPDATE = (mixed,)  # are shown the agent after each update of the window, and make a rollout of each
ESTIMATORS = Registry(
    "estimators",
    "estimator",
    {e.__name__: e for e in (debiased, standard, bootstrapped, mixed)},
    "a function of (search, objective, member, seen)",
)
