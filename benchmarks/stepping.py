"""What a step of each MinAtar game costs, gymnax's way and ours, and its part in a life: `python -m benchmarks.stepping`.

Random actions in 64 environments, rollouts of 128 steps, on one core: gymnax's own `step` under `vmap`, which makes a fresh start
at every step, and the stepping of `discover.agents.rollout`, which makes one where an episode ends. Each is a scan that returns
what a rollout returns of its environments, compiled with the same options, and goes on from the states that it left.

Why it can be believed: the two take turns in one process, so that only their ratio is claimed, with its range over the pairs. An
agent's life (`discover.train`, PPO, as usual on MinAtar) takes its turn beside them, and the part of the stepping in it is a
ratio of neighbours too. Both sides play the same game: where ours is not gymnax's own, tests hold it to that bit for bit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from statistics import median

from benchmarks.record import ROOT, provenance

GAMES = ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")
ENVS, STEPS, ROLLOUTS, REPEATS = 64, 128, 8, 7
UPDATES = 8  # of the life


def stepping_theirs(env, params, actions: int):
    """(keys, (obs, states)) -> ((obs, states), what was seen), of one rollout."""
    import jax

    from envs.uniform import strong

    def rollout(key, carry):
        env_key, action_key, _ = jax.random.split(key, 3)
        keys = jax.random.split(env_key, (STEPS, ENVS))
        chosen = jax.random.randint(action_key, (STEPS, ENVS), 0, actions)

        def step(carry, xs):
            before, state = carry
            each = jax.vmap(env.step, in_axes=(0, 0, 0, None))
            obs, state, reward, terminated, truncated, _ = each(xs[0], state, xs[1], params)
            return strong((obs, state)), (before, reward, terminated, truncated)

        return jax.lax.scan(step, carry, (keys, chosen))

    return rollout


def stepping_ours(env, params, actions: int, num_starts: int):
    """The same as `discover.agents.rollout` does it."""
    import jax
    import jax.numpy as jnp

    from discover.agents.rollout import _step_env, at_once, auto_reset
    from discover.devices.plan import CPU

    def rollout(key, carry):
        env_key, action_key, start_key = jax.random.split(key, 3)
        keys = jax.random.split(env_key, (STEPS, ENVS))
        chosen = jax.random.randint(action_key, (STEPS, ENVS), 0, actions)
        start_keys = jax.random.split(start_key, (num_starts, ENVS))
        restart = auto_reset(env, params, start_keys, at_once=at_once(CPU, carry[0][0].size, num_starts, STEPS))

        def step(carry, xs):
            before, state = carry
            t, keys, action = xs
            each = jax.vmap(_step_env, in_axes=(None, 0, 0, 0, None))
            obs, state, reward, terminated, truncated = each(env, keys, state, action, params)
            carry = restart(t, terminated | truncated, (obs, state))
            return carry, (before, reward, terminated, truncated)

        return jax.lax.scan(step, carry, (jnp.arange(STEPS), keys, chosen))

    return rollout


def measure(game: str) -> list[dict[str, float]]:
    """In this process, on one core: microseconds a step of both, and of a life, in turn."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import gymnax
    import jax

    import envs
    from discover.agents.agent import Agent
    from discover.agents.setups import usual_setup
    from discover.devices.runtime import compiler_options
    from discover.evaluation.train import train
    from envs.uniform import strong

    name = f"{game}-MinAtar"
    usual = usual_setup(name).agent
    their_env, their_params = gymnax.make(name)
    our_env, our_params = envs.make(name)
    actions, num_starts = our_env.num_actions, Agent(our_env, usual).num_starts

    def side(rollout, env, params):
        program = jax.jit(rollout, compiler_options=compiler_options())
        root = jax.random.key(0)
        carry = strong(jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(root, ENVS), params))
        played = 0

        def play(rollouts):
            nonlocal carry, played
            for _ in range(rollouts):
                played += 1
                carry, seen = program(jax.random.fold_in(root, played), carry)
            jax.block_until_ready(seen)
            return rollouts * STEPS * ENVS

        return play

    def life(updates):
        steps = updates * usual.steps_per_update
        jax.block_until_ready(train("ppo", name, total_steps=steps, num_seeds=1, num_evals=1).state)
        return steps

    sides = {
        "theirs": (side(stepping_theirs(their_env, their_params, actions), their_env, their_params), ROLLOUTS),
        "ours": (side(stepping_ours(our_env, our_params, actions, num_starts), our_env, our_params), ROLLOUTS),
        "life": (life, UPDATES),
    }
    for play, _ in sides.values():
        play(1)  # compiles
    turns = []
    for _ in range(REPEATS):
        turn = {}
        for what, (play, amount) in sides.items():
            began = time.perf_counter()
            steps = play(amount)
            turn[what] = 1e6 * (time.perf_counter() - began) / steps
        turns.append(turn)
    return turns


def summarise(turns: list[dict[str, float]]) -> dict[str, float | list[float]]:
    ratios = [turn["theirs"] / turn["ours"] for turn in turns]
    return {
        **{f"{side}_us": median(turn[side] for turn in turns) for side in turns[0]},
        "ratio": median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "part_of_life": median(turn["ours"] / turn["life"] for turn in turns),
    }


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return
    found, turns = {}, {}
    print("| game | gymnax's step, us | ours, us | **ratio** [range] | a life, us a step | of which stepping |")
    print("|---|---|---|---|---|---|", flush=True)
    for game in GAMES:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.stepping", game],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        turns[game] = json.loads(done.stdout.splitlines()[-1])
        row = found[game] = summarise(turns[game])
        low, high = row["ratio_range"]
        print(
            f"| {game} | {row['theirs_us']:.2f} | {row['ours_us']:.2f} | **{row['ratio']:.2f}** [{low:.2f}, {high:.2f}] "
            f"| {row['life_us']:.1f} | {row['part_of_life']:.0%} |",
            flush=True,
        )
    sizes = {"envs": ENVS, "steps": STEPS, "rollouts": ROLLOUTS, "updates": UPDATES, "cores": 1}
    report = provenance() | {"sizes": sizes, "found": found, "turns": turns}
    (ROOT / "benchmarks/results/stepping.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
