"""rejax's PPO with a drift of ours instead of its clip: `python -m benchmarks.rejax_agent SPEC` prints a line of JSON.

Where an objective schedules the weights around its drift, rejax's agent has these weights too.

Runs in the environment of `benchmarks.peer_env`, which has rejax and, of our dependencies, those of
`learned_objectives`. SPEC is JSON with the fields of `Life`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from rejax import PPO
from rejax.evaluate import evaluate

import learned_objectives as lo

EPISODES = 64  # by whose mean return an agent is judged at its end
WEIGHTS = {"gae_lambda": 0.95, "clip_eps": 0.2, "vf_coef": 0.5, "ent_coef": 0.01}  # of rejax's own PPO


@dataclass(frozen=True)
class Life:
    """What is trained. Sizes are those of the usual MinAtar agents here and in rejax's own configurations."""

    env: str  # as gymnax names it
    total_steps: int  # environment steps, in whole rollouts
    objective: str  # a name or a file of learned_objectives; "": rejax's own PPO, unchanged
    learning_rate: float  # constant: rejax has no schedule
    num_seeds: int
    seed: int
    num_envs: int = 64
    num_steps: int = 128
    num_epochs: int = 4
    num_minibatches: int = 8


class MirrorPPO(PPO):
    """rejax's PPO, in whose loss of the policy the clipped surrogate is that of a drift.

    A `ScheduledMirror` also sets rejax's weights of entropy and value, its lambda and its value clip, before every update.
    """

    mirror: Any = struct.field(default=None)

    def progress(self, steps):
        """Of an update whose rollout begins after so many environment steps."""
        return lo.Progress(jnp.float32(steps), jnp.float32(self.total_timesteps))

    def train_iteration(self, ts):
        if not isinstance(self.mirror, lo.ScheduledMirror):
            return super().train_iteration(ts)
        now = self.mirror.settings(self.progress(ts.global_step))
        clip = jnp.inf if now.value_clip is None else now.value_clip  # its clip acts on the values alone
        scheduled = self.replace(
            gae_lambda=now.gae_lambda, ent_coef=now.entropy_coef, vf_coef=now.value_coef, clip_eps=clip
        )
        return PPO.train_iteration(scheduled, ts)

    def update_actor(self, ts, batch):
        progress = self.progress(ts.global_step - self.num_envs * self.num_steps)
        seen, advantage = batch.trajectories, batch.advantages
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)

        def loss(params):
            log_prob, entropy = self.actor.apply(params, seen.obs, seen.action, method="log_prob_entropy")
            surrogate = self.mirror.drift.surrogate(log_prob - seen.log_prob, advantage, progress)
            return -surrogate.mean() - self.ent_coef * entropy.mean()

        return ts.replace(actor_ts=ts.actor_ts.apply_gradients(grads=jax.grad(loss)(ts.actor_ts.params)))


def require_weights(mirror: lo.ScheduledMirror) -> None:
    """ValueError where the weights that the schedules multiply are not those of rejax's agent. A value clip may be absent."""
    found = {
        "gae_lambda": mirror.gae_lambda,
        "clip_eps": WEIGHTS["clip_eps"] if mirror.value_clip is None else mirror.value_clip,
        "vf_coef": mirror.value_coef,
        "ent_coef": mirror.entropy_coef,
    }
    if found != WEIGHTS:
        raise ValueError(f"the schedules of this objective multiply {found}, and rejax's agent has {WEIGHTS}.")


def algorithm(life: Life) -> PPO:
    """The algorithm that a life is trained by."""
    mirror = lo.load(life.objective) if life.objective else None
    if isinstance(mirror, lo.ScheduledMirror):
        require_weights(mirror)
    algo = (MirrorPPO if mirror else PPO).create(
        env=life.env,
        agent_kwargs={"activation": "relu", "hidden_layer_sizes": (64, 64)},
        num_envs=life.num_envs,
        num_steps=life.num_steps,
        num_epochs=life.num_epochs,
        num_minibatches=life.num_minibatches,
        learning_rate=life.learning_rate,
        max_grad_norm=0.5,
        gamma=0.99,
        **WEIGHTS,
        total_timesteps=life.total_steps,
        eval_freq=life.total_steps,
        skip_initial_evaluation=True,
        **({"mirror": mirror} if mirror else {}),
    )

    def returns(algo, ts, key):
        steps = algo.env_params.max_steps_in_episode
        return evaluate(algo.make_act(ts), key, algo.env, algo.env_params, EPISODES, steps)[1].mean()

    return algo.replace(eval_callback=returns)


def train(life: Life) -> list[float]:
    """The mean return of fresh episodes at the end, by seed."""
    keys = jax.random.split(jax.random.PRNGKey(life.seed), life.num_seeds)
    algo = algorithm(life)
    _, returns = jax.jit(lambda keys: jax.lax.map(algo.train, keys))(keys)
    return [float(x) for x in returns[:, -1]]


if __name__ == "__main__":
    print(json.dumps(train(Life(**json.loads(sys.argv[1])))))
