"""One measurement, in a process of its own: `python -m benchmarks.sides SIDE SPEC` prints a line
of JSON. Each side is used as its own users would use it, with evaluation off.

Imports are not timed. `compile_s` is the time from there to a program that is ready to run:
making the environment, tracing, compiling. `run_s` is a whole life on a program that ran before.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from benchmarks.rows import Row
from benchmarks.turns import alone

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "gymnax", "brax", "distrax", "rejax")


class Timing(NamedTuple):
    compile_s: float
    run_s: float
    compiled_in_run: int  # programs compiled while `run_s` was taken: should be none


class Compilations:
    """How many programs JAX has compiled since this was made."""

    def __init__(self):
        import jax

        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, _seconds: float, **_):
        self.count += event == "/jax/core/compile/backend_compile_duration"


def stopwatch(call: Callable[[], object]) -> float:
    import jax

    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def ours(row: Row, seed: int, products: str = "float32") -> Timing:
    """`discover.train`, whose program serves lives of every length: one of a single rollout
    compiles it."""
    import discover

    if row.env.startswith("brax/"):
        import envs.suites.brax  # noqa: F401  # `envs.make` imports it late

    agent = discover.AgentConfig(
        num_envs=row.num_envs,
        num_steps=row.num_steps,
        num_starts=discover.usual_setup(row.env).agent.num_starts,
        num_epochs=row.num_epochs,
        num_minibatches=row.num_minibatches,
        learning_rate=row.learning_rate,
        anneal=False,
        activation=row.activation,
        network="mlp",
        clip=row.clip,
        products=products,
        normalise_obs=row.normalise,
        normalise_reward=row.normalise,
    )
    loss = discover.LossConfig(entropy_coef=row.entropy_coef, value_clip=row.value_clip)

    def train(seed: int, total_steps: int):
        return discover.train(
            "ppo",
            row.env,
            total_steps=total_steps,
            num_seeds=row.num_seeds,
            seed=seed,
            num_evals=1,
            agent=agent,
            loss=loss,
        ).state

    first_s = stopwatch(lambda: train(seed, row.steps_per_update))
    with alone():
        train(seed, row.total_steps)
        compilations = Compilations()
        run_s = stopwatch(lambda: train(seed + 1, row.total_steps))
    compile_s = first_s - run_s * row.steps_per_update / row.total_steps
    return Timing(compile_s, run_s, compilations.count)


def bfloat16(row: Row, seed: int) -> Timing:
    """`ours` with products of dense layers rounded to bfloat16."""
    return ours(row, seed, "bfloat16")


def rejax(row: Row, seed: int) -> Timing:
    """`jit(vmap(PPO.train))`, or without the vmap where there is one agent."""
    import jax
    from rejax import PPO

    name, _, backend = row.env.partition("@")
    if backend:
        import rejax.compat.brax2gymnax  # noqa: F401  # imported late by `create`

    def build():
        algo = PPO.create(
            env=name,
            env_params={"backend": backend} if backend else {},
            agent_kwargs={"activation": row.activation, "hidden_layer_sizes": (64, 64)},
            num_envs=row.num_envs,
            num_steps=row.num_steps,
            num_epochs=row.num_epochs,
            num_minibatches=row.num_minibatches,
            learning_rate=row.learning_rate,
            max_grad_norm=0.5,
            gamma=0.99,
            gae_lambda=0.95,
            clip_eps=0.2,
            vf_coef=0.5,
            ent_coef=row.entropy_coef,
            normalize_observations=row.normalise,
            normalize_rewards=row.normalise,
            total_timesteps=row.total_steps,
            eval_freq=row.total_steps,
            skip_initial_evaluation=True,
        )
        # Even so, PPO evaluates 128 episodes at the end, which on Ant costs more than the life.
        algo = algo.replace(eval_callback=lambda algo, train_state, key: ())
        train = algo.train if row.num_seeds == 1 else jax.vmap(algo.train)
        return jax.jit(train).lower(keys(seed)).compile()

    def keys(seed: int):
        key = jax.random.PRNGKey(seed)
        return key if row.num_seeds == 1 else jax.random.split(key, row.num_seeds)

    began = time.perf_counter()
    train = build()
    compile_s = time.perf_counter() - began
    with alone():
        jax.block_until_ready(train(keys(seed)))
        compilations = Compilations()
        run_s = stopwatch(lambda: train(keys(seed + 1)))
    return Timing(compile_s, run_s, compilations.count)


def brax(row: Row, seed: int) -> Timing:
    """brax's own PPO. It compiles anew at each call, so one call trains for twice the steps, in two
    equal parts; the second runs on what the first has compiled."""
    import jax

    with_replication()
    from brax import envs
    from brax.training.agents.ppo import networks, train

    name, _, backend = row.env.removeprefix("brax/").partition("@")
    ready, compilations, counts, seconds = [], Compilations(), [], []

    def progress(_steps: int, metrics: dict):
        ready.append(time.perf_counter())
        counts.append(compilations.count)
        seconds.append(metrics["training/walltime"])

    began = time.perf_counter()
    train.train(
        environment=envs.get_environment(name, backend=backend),
        num_timesteps=2 * row.total_steps,
        num_evals=3,  # one more than there are parts
        run_evals=False,
        progress_fn=progress,
        episode_length=1000,
        num_envs=row.num_envs,
        unroll_length=row.num_steps,
        batch_size=row.num_envs // row.num_minibatches,
        num_minibatches=row.num_minibatches,
        num_updates_per_batch=row.num_epochs,
        learning_rate=row.learning_rate,
        entropy_cost=row.entropy_coef,
        discounting=0.99,
        gae_lambda=0.95,
        clipping_epsilon=0.2,
        max_grad_norm=0.5,
        normalize_observations=row.normalise,
        network_factory=partial(
            networks.make_ppo_networks,
            policy_hidden_layer_sizes=(64, 64),
            value_hidden_layer_sizes=(64, 64),
            activation={"tanh": jax.numpy.tanh, "relu": jax.nn.relu}[row.activation],
        ),
        seed=seed,
    )
    run_s = seconds[1] - seconds[0]
    return Timing(ready[0] - began - run_s, run_s, counts[1] - counts[0])


def bare(row: Row, seed: int) -> Timing:
    """The environment alone under random actions, stepped as our rollouts step it and dealt out to all devices: what no agent
    can be quicker than. Its steps are those of one agent."""
    import jax
    import jax.numpy as jnp

    import discover  # noqa: F401  # gives JAX every core, before `envs` starts it
    import envs
    from discover.devices.parallel import sharded_map

    env, params = envs.make(row.env)
    devices = max(d for d in range(1, jax.device_count() + 1) if row.num_envs % d == 0)
    share = row.num_envs // devices

    def live(num_rollouts, key):
        reset_key, start_key, act_key = jax.random.split(key, 3)
        _, state = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(reset_key, share), params)
        _, start = jax.vmap(env.reset_env, in_axes=(0, None))(jax.random.split(start_key, share), params)
        actions = jax.vmap(env.action_space(params).sample)(jax.random.split(act_key, row.num_steps))

        def step(state, x):
            key, action = x
            keys = jax.random.split(key, share)
            obs, state, reward, terminated, _ = jax.vmap(env.step_env, in_axes=(0, 0, None, None))(
                keys, state, action, params
            )
            done = terminated | jax.vmap(env.is_truncated, in_axes=(0, None))(state, params)
            state = jax.tree.map(
                lambda new, old: jnp.where(done.reshape(-1, *(1,) * (new.ndim - 1)), new, old), start, state
            )
            return state, obs.sum() + reward.sum()

        def rollout(i, carry):
            state, total = carry
            keys = jax.random.split(jax.random.fold_in(key, i), row.num_steps)
            state, seen = jax.lax.scan(step, state, (keys, actions))
            return state, total + seen.sum()

        return jax.lax.fori_loop(0, num_rollouts, rollout, (state, jnp.float32(0)))[1]

    program = sharded_map(live, chunk=1)
    keys = jax.random.split(jax.random.key(seed), devices)
    first_s = stopwatch(lambda: program(jnp.int32(1), keys))
    with alone():
        compilations = Compilations()
        run_s = stopwatch(lambda: program(jnp.int32(row.total_steps // row.steps_per_update), keys))
    return Timing(first_s, run_s, compilations.count)


def with_replication() -> None:
    """Give JAX the function that brax 0.14 calls and jax 0.10 removed."""
    import jax

    if not hasattr(jax, "device_put_replicated"):
        jax.device_put_replicated = device_put_replicated


def device_put_replicated(tree: Any, devices: list[Any]) -> Any:
    """A copy on each device, stacked along a new first axis.

    The mesh's axis has the name that brax's pmap has; any other makes brax compile twice.
    """
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    along = NamedSharding(Mesh(np.array(devices), ("i",)), PartitionSpec("i"))
    return jax.tree.map(lambda x: jax.device_put(jax.numpy.stack([x] * len(devices)), along), tree)


SIDES = {side.__name__: side for side in (ours, bfloat16, rejax, brax, bare)}


def peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e6 / 1024)


def memory() -> dict[str, int]:
    """Megabytes of the first device's own memory: the limit, and the peak of this process; empty on a CPU, which has none."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    return {name: round(stats[name] / 1e6) for name in ("bytes_limit", "peak_bytes_in_use") if name in stats}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main(side: str, spec: str) -> None:
    fields = json.loads(spec)
    seed = fields.pop("seed")
    row = Row(**fields)
    timing = SIDES[side](row, seed)
    import jax

    measured = {
        **timing._asdict(),
        "steps_per_s": (1 if side == "bare" else row.num_seeds) * row.total_steps / timing.run_s,
        "peak_rss_mb": peak_rss_mb(),
        "devices": jax.device_count(),
        "device": jax.devices()[0].device_kind,
        "device_memory_mb": memory(),
        "versions": versions(),
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main(*sys.argv[1:])
