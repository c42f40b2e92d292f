"""Brax's own PPO with a drift of ours instead of its clip: `python -m benchmarks.brax_agent SPEC` prints a line of JSON.

Brax's loss has no place for a drift. Here its term of the policy is taken out of the sum and ours is put in; everything else is
Brax's. The step is read from the sample count of Brax's normaliser of observations, which goes up by a rollout before every
update. Where an objective schedules lambda and the weights of entropy and value, Brax's loss has these too. There is no value
clip, as by default in Brax.

SPEC is JSON with the fields of `Life`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from brax import envs
from brax.training import types
from brax.training.agents.ppo import losses, networks
from brax.training.agents.ppo import train as ppo

import learned_objectives as lo
from benchmarks.sides import with_replication

EPISODES = 64  # by whose mean return an agent is judged at its end
EPSILON, LAMBDA, VALUE_COEF = 0.2, 0.95, 0.5


@dataclass(frozen=True)
class Life:
    """What is trained. Sizes are those of the usual agents of these environments here."""

    env: str  # as Brax names it, with the backend "spring"
    total_steps: int  # environment steps, in whole rollouts
    objective: str  # a name or a file of learned_objectives; "": Brax's own PPO, unchanged
    learning_rate: float  # constant
    num_seeds: int
    seed: int
    num_envs: int = 64
    num_steps: int = 64
    num_epochs: int = 4
    num_minibatches: int = 8
    discount: float = 0.99
    entropy_coef: float = 0.0
    episode_length: int = 1000

    @property
    def rollout(self) -> int:
        """Environment steps before an update."""
        return self.num_envs * self.num_steps


Loss = Callable[..., tuple[jax.Array, types.Metrics]]


def steps_seen(count: Any) -> jax.Array:
    """f32[]: a count of Brax, which may be of two halves."""
    return (
        jnp.float32(count.hi) * 2.0**32 + jnp.float32(count.lo)
        if isinstance(count, types.UInt64)
        else jnp.float32(count)
    )


def with_drift(original: Loss, mirror: lo.Mirror, life: Life) -> Loss:
    """Brax's loss, in whose sum the clipped surrogate is that of a Mirror."""

    def loss(params, normalizer_params, data, rng, ppo_network, **settings):
        step = jnp.maximum(steps_seen(normalizer_params.count) - life.rollout, 0.0)
        progress = lo.Progress(step, jnp.float32(life.total_steps))
        now = mirror.settings(progress)
        settings |= {"gae_lambda": now.gae_lambda, "vf_coefficient": now.value_coef, "entropy_cost": now.entropy_coef}
        total, metrics = original(params, normalizer_params, data, rng, ppo_network, **settings)
        log_ratio, advantage = samples(params, normalizer_params, data, ppo_network, settings)
        policy_loss = -mirror.surrogate(log_ratio, advantage, progress).mean()
        return total - metrics["policy_loss"] + policy_loss, metrics | {"policy_loss": policy_loss}

    return loss


def samples(params, normalizer_params, data, ppo_network, settings) -> tuple[jax.Array, jax.Array]:
    """(log ratios, normalised advantages) f32[T, B] of a minibatch [B, T], as Brax has them in its loss."""
    data = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), data)
    apply = partial(ppo_network.value_network.apply, normalizer_params, params.value)
    truncation = data.extras["state_extras"]["truncation"]
    _, advantage = losses.compute_gae(
        truncation=truncation,
        termination=(1 - data.discount) * (1 - truncation),
        rewards=data.reward * settings["reward_scaling"],
        values=apply(data.observation),
        bootstrap_value=apply(jax.tree.map(lambda x: x[-1], data.next_observation)),
        lambda_=settings["gae_lambda"],
        discount=settings["discounting"],
    )
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    logits = ppo_network.policy_network.apply(normalizer_params, params.policy, data.observation)
    seen = data.extras["policy_extras"]
    log_prob = ppo_network.parametric_action_distribution.log_prob(logits, seen["raw_action"])
    return log_prob - seen["log_prob"], advantage


def mirror_of(life: Life) -> lo.Mirror:
    """The objective of a life, with the weights of Brax's agent around its drift."""
    return lo.load(life.objective).replace(
        gamma=life.discount, gae_lambda=LAMBDA, entropy_coef=life.entropy_coef, value_coef=VALUE_COEF, value_clip=None
    )


def train(life: Life) -> list[float]:
    """The mean return of fresh episodes at the end, by seed."""
    with_replication()
    own = losses.compute_ppo_loss
    if life.objective:
        losses.compute_ppo_loss = with_drift(own, mirror_of(life), life)
    try:
        return [_train(life, life.seed + number) for number in range(life.num_seeds)]
    finally:
        losses.compute_ppo_loss = own


def _train(life: Life, seed: int) -> float:
    returns = []
    ppo.train(
        environment=envs.get_environment(life.env, backend="spring"),
        num_timesteps=life.total_steps,
        num_evals=2,  # at the start and at the end
        num_eval_envs=EPISODES,
        progress_fn=lambda _, metrics: returns.append(float(metrics["eval/episode_reward"])),
        episode_length=life.episode_length,
        num_envs=life.num_envs,
        unroll_length=life.num_steps,
        batch_size=life.num_envs // life.num_minibatches,
        num_minibatches=life.num_minibatches,
        num_updates_per_batch=life.num_epochs,
        learning_rate=life.learning_rate,
        entropy_cost=life.entropy_coef,
        discounting=life.discount,
        gae_lambda=LAMBDA,
        vf_loss_coefficient=VALUE_COEF,
        clipping_epsilon=EPSILON,
        max_grad_norm=0.5,
        normalize_observations=True,
        network_factory=partial(
            networks.make_ppo_networks,
            policy_hidden_layer_sizes=(64, 64),
            value_hidden_layer_sizes=(64, 64),
            activation=jnp.tanh,
        ),
        seed=seed,
    )
    return returns[-1]


if __name__ == "__main__":
    print(json.dumps(train(Life(**json.loads(sys.argv[1])))))
