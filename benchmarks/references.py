"""What a random policy and PPO come to: `python -m benchmarks.references`.

Writes discover/results/references.json, by which `discover.evaluate` normalises returns. PPO is as `usual_setup` has it, and its
return the mean over seeds of training returns in the last twentieth of a life; the random policy samples actions uniformly.
"""

from __future__ import annotations

import argparse
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import discover
import envs
from benchmarks.record import provenance
from discover.results.references import PATH
from discover.runs.store import write_text

SEEDS = 8
SEED = 55_000  # not among those of evaluations
EPISODES = 256
# environment -> environment steps of a PPO agent: those of `benchmarks.returns`, where that does not finish learning in minutes
BUDGETS = {
    "CartPole-v1": 500_000,
    "Acrobot-v1": 500_000,
    "MountainCar-v0": 500_000,
    "Pendulum-v1": 262_144,
    "Breakout-MinAtar": 262_144,
    "Freeway-MinAtar": 327_680,
    "Asterix-MinAtar": 262_144,
    "SpaceInvaders-MinAtar": 262_144,
    "Seaquest-MinAtar": 262_144,
    "brax/inverted_pendulum@spring": 262_144,
    "brax/inverted_double_pendulum@spring": 262_144,
    "brax/reacher@spring": 262_144,
    "brax/hopper@spring": 2_000_000,
}


def random_return(name: str) -> float:
    """Mean undiscounted return of whole episodes under uniform random actions."""
    env, params = envs.make(name)
    space = env.action_space(params)

    def episode(key):
        reset_key, key = jax.random.split(key)
        _, state = env.reset(reset_key, params)

        def step(carry):
            key, state, total, _ = carry
            key, act_key, step_key = jax.random.split(key, 3)
            _, state, reward, terminated, truncated, _ = env.step(step_key, state, space.sample(act_key), params)
            return key, state, total + reward, terminated | truncated

        carry = (key, state, jnp.float32(0), jnp.bool_(False))
        return jax.lax.while_loop(lambda carry: ~carry[3], step, carry)[2]

    keys = jax.random.split(jax.random.key(SEED), EPISODES)
    return float(jax.jit(jax.vmap(episode))(keys).mean())


def measure(name: str) -> dict:
    train = partial(discover.train, "ppo", name, num_seeds=SEEDS, seed=SEED, num_evals=20)
    final = train(total_steps=BUDGETS[name]).returns[:, -1]
    return {
        "random": round(random_return(name), 3),
        "ppo": round(float(final.mean()), 3),
        "ppo_by_seed": np.round(final, 2).tolist(),
        "total_steps": BUDGETS[name],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--envs", nargs="+", choices=BUDGETS, default=list(BUDGETS))
    args = parser.parse_args()
    known = json.loads(PATH.read_text())["envs"] if PATH.exists() else {}
    for name in args.envs:
        known[name] = measure(name) | {"measured": provenance()}
        print(name, json.dumps({k: v for k, v in known[name].items() if k != "measured"}), flush=True)
        report = {"seeds": SEEDS, "seed": SEED, "episodes_of_random": EPISODES, "envs": known}
        write_text(PATH, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
