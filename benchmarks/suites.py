"""Suites of environments through our adapters, beside the suites alone: `python -m benchmarks.suites`; 25 minutes on two cores.

Needs the suites: `pip install '.[craftax,jumanji,xminigrid,navix]'`, and `stoa-env` for the column of its adapters.

Speed: valid actions at random in 64 environments, rollouts of 128 steps. `step` is the transition alone: ours, the suite's,
and the suite's through stoa-env. `reset` has the automatic reset too: ours as in a rollout of `discover`, and the suite's own.
The sides take turns in one process, and CPU seconds are counted, which other programs on the machine change least. Every side
returns what an agent reads: observations, rewards and ends.

Learning: PPO with 5 seeds on one task of each suite, beside a policy that takes valid actions at random.

Writes benchmarks/results/suites.json after each task.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import discover
import envs
from benchmarks.record import ROOT, provenance
from benchmarks.suite_sides import SUITES, Side, ours
from discover.agents.rollout import _step_env, at_once, auto_reset
from discover.devices.plan import CPU
from discover.results import statistics
from discover.runs.store import write_text
from envs.uniform import strong

SPEED = (
    *("xminigrid/DoorKey-5x5", "navix/DoorKey-5x5", "jumanji/Snake", "jumanji/Game2048"),
    "craftax/Classic-Symbolic",  # compiles for minutes
)
LEARN = ("xminigrid/DoorKey-5x5", "navix/DoorKey-5x5", "jumanji/Snake", "craftax/Classic-Symbolic")
TOTAL_STEPS = 2**18  # environment steps of each seed
ENVS, STEPS, ROLLOUTS, REPEATS = 64, 128, 1, 7
SEEDS, SEED = 5, 97_000
AGENT = discover.AgentConfig(num_envs=64, num_steps=64, num_minibatches=4, num_epochs=4, learning_rate=1e-3)
EPISODES, LONGEST = 256, 4000  # of the random policy; environment steps
PACKAGES = ("craftax", "jumanji", "xminigrid", "navix", "stoa-env")


def valid(states: Any, key: jax.Array, num_actions: int) -> jax.Array:
    """Actions i32[B] at random among those that states with an `action_mask` or a `mask` allow."""
    mask = getattr(states, "action_mask", getattr(states, "mask", None))
    if mask is None:
        return jax.random.randint(key, (ENVS,), 0, num_actions)
    return jax.random.categorical(key, jnp.where(mask, 0.0, -jnp.inf))


def player(side: Side, num_actions: int) -> Callable[[int], int]:
    """A function that plays some rollouts, and returns their steps."""
    start, transition = side

    @jax.jit
    def rollout(key, states):
        def step(states, key):
            action_key, key = jax.random.split(key)
            keys = jax.random.key_data(jax.random.split(key, ENVS))
            states, seen = transition(states, valid(states, action_key, num_actions), keys)
            return strong(states), seen

        return jax.lax.scan(step, states, jax.random.split(key, STEPS))

    keys = jax.random.key_data(jax.random.split(jax.random.key(0), ENVS))
    return _playing(rollout, strong(jax.jit(start)(keys)))


def with_resets(name: str) -> Callable[[int], int]:
    """Ours as `discover.agents.rollout` steps."""
    env, params = envs.make(name)
    num_starts = 1 if env.expensive_reset else STEPS

    @jax.jit
    def rollout(key, carry):
        key, start_key = jax.random.split(key)
        starts = jax.random.split(start_key, (num_starts, ENVS))
        restart = auto_reset(env, params, starts, at_once=at_once(CPU, carry[0][0].size, num_starts, STEPS))

        def step(carry, xs):
            (before, state), (t, key) = carry, xs
            action_key, key = jax.random.split(key)
            each = jax.vmap(_step_env, in_axes=(None, 0, 0, 0, None))
            actions = valid(state, action_key, env.num_actions)
            obs, state, reward, *ends = each(env, jax.random.split(key, ENVS), state, actions, params)
            return restart(t, ends[0] | ends[1], (obs, state)), (before, reward, *ends)

        return jax.lax.scan(step, carry, (jnp.arange(STEPS), jax.random.split(key, STEPS)))

    keys = jax.random.split(jax.random.key(0), ENVS)
    return _playing(rollout, strong(jax.jit(jax.vmap(env.reset_env, in_axes=(0, None)))(keys, params)))


def _playing(rollout: Callable[..., Any], states: Any) -> Callable[[int], int]:
    played = 0

    def play(rollouts: int) -> int:
        nonlocal states, played
        for _ in range(rollouts):
            played += 1
            states, seen = rollout(jax.random.fold_in(jax.random.key(1), played), states)
        jax.block_until_ready(seen)
        return rollouts * STEPS * ENVS

    return play


def speed(name: str) -> dict[str, Any]:
    """CPU microseconds a step of each side, and the ratios: the suite's time by ours, above 1 where ours is faster."""
    prefix, task = name.split("/")
    num_actions = envs.make(name)[0].num_actions
    alone = SUITES[prefix]
    sides = {
        "step_ours": player(ours(name), num_actions),
        "step_suite": player(alone(task, auto_reset=False), num_actions),
        "reset_ours": with_resets(name),
        "reset_suite": player(alone(task, auto_reset=True), num_actions),
    }
    if prefix != "craftax":  # stoa-env has no adapter of it
        sides["step_stoa"] = player(alone(task, auto_reset=False, stoa=True), num_actions)
    for play in sides.values():
        play(1)  # compiles
    turns = []
    for _ in range(REPEATS):
        turn = {}
        for what, play in sides.items():
            began = time.process_time()
            steps = play(ROLLOUTS)
            turn[what] = 1e6 * (time.process_time() - began) / steps
        turns.append(turn)
    pairs = {
        "step": ("step_suite", "step_ours"),
        "reset": ("reset_suite", "reset_ours"),
        "stoa": ("step_suite", "step_stoa"),
    }
    ratios = {
        what: [turn[above] / turn[below] for turn in turns] for what, (above, below) in pairs.items() if below in sides
    }
    return {
        **{f"{side}_us": round(median(turn[side] for turn in turns), 3) for side in sides},
        **{f"{what}_ratio": round(median(found), 3) for what, found in ratios.items()},
        **{f"{what}_ratio_range": [round(min(found), 3), round(max(found), 3)] for what, found in ratios.items()},
    }


def at_random(name: str) -> dict[str, Any]:
    """Returns of episodes of valid actions at random; an episode longer than LONGEST counts with what it has."""
    env, params = envs.make(name)

    def episode(key):
        reset_key, key = jax.random.split(key)
        state = env.reset_env(reset_key, params)[1]

        def step(carry):
            state, key, total, _ = carry
            key, action_key, step_key = jax.random.split(key, 3)
            valid = jnp.ones(env.num_actions, bool) if env.action_mask is None else env.action_mask(state, params)
            action = jax.random.categorical(action_key, jnp.where(valid, 0.0, -jnp.inf))
            _, state, reward, terminated, _ = env.step_env(step_key, state, action, params)
            return state, key, total + reward, terminated | env.is_truncated(state, params)

        begun = (state, key, jnp.float32(0), jnp.bool_(False))
        return jax.lax.while_loop(lambda carry: ~carry[-1] & (carry[0].time < LONGEST), step, begun)[2]

    returns = np.asarray(jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(SEED), EPISODES)))
    error = returns.std(ddof=1) / np.sqrt(EPISODES)
    return {"mean": round(float(returns.mean()), 4), "standard_error": round(float(error), 4), "episodes": EPISODES}


def learn(name: str, steps: int, seeds: int) -> dict[str, Any]:
    began = time.monotonic()
    found = discover.train("ppo", name, total_steps=steps, num_seeds=seeds, seed=SEED, num_evals=16, agent=AGENT)
    return {
        "total_steps": steps,
        "final": statistics.iqm_interval(found.returns[:, -1])._asdict(),
        "final_returns": found.returns[:, -1].round(4).tolist(),
        "env_steps": found.env_steps.tolist(),
        "returns": found.returns.mean(0).round(4).tolist(),
        "random": at_random(name),
        "seconds_with_compilation": round(time.monotonic() - began),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", nargs="*", choices=SPEED, default=list(SPEED), metavar="TASK")
    parser.add_argument("--learn", nargs="*", choices=LEARN, default=list(LEARN), metavar="TASK")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument(
        "--divide", type=int, default=1, help="the steps of learning by this: does it work? Never to be quoted"
    )
    args = parser.parse_args()
    report = provenance() | {
        "suites": {name: importlib.metadata.version(name) for name in PACKAGES},
        "sizes": {"envs": ENVS, "steps": STEPS, "rollouts": ROLLOUTS, "repeats": REPEATS},
        "agent": vars(AGENT),
        "seeds": args.seeds,
        "speed": {},
        "learning": {},
    }
    jobs = [("speed", name, lambda name=name: speed(name)) for name in args.speed]
    jobs += [
        ("learning", name, lambda name=name: learn(name, TOTAL_STEPS // args.divide, args.seeds)) for name in args.learn
    ]
    for part, name, job in jobs:
        report[part][name] = job()
        print(part, name, json.dumps(report[part][name]), flush=True)
        if args.divide == 1:
            write_text(ROOT / "benchmarks/results/suites.json", json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
