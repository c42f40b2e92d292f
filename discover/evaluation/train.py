"""Train fresh agents with an objective: many seeds at once, on every device."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import envs
import learned_objectives as lo
from discover.agents.agent import Agent, AgentConfig, Task, diverged, stretches
from discover.agents.arguments import directory_of, require_counts, require_seed, require_settings, whole
from discover.agents.objectives import as_arrays, resolve_objective
from discover.agents.setups import LossConfig, usual_setup, warn_if_far
from discover.agents.trained import TrainResult
from discover.console import advise
from discover.devices import parallel
from discover.devices.modes import plain_jax
from discover.devices.plan import free_memory, plan_for
from discover.searches.curriculum import TASK
from envs.check import not_finite


@plain_jax()
def train(
    objective: str | os.PathLike | lo.Objective,
    env: Any = "CartPole-v1",
    *,
    total_steps: int = 500_000,
    num_seeds: int = 8,
    seed: int = 0,
    num_evals: int = 20,
    chunk: int | None = None,
    devices: Sequence[Any] | None = None,
    agent: AgentConfig | None = None,
    loss: LossConfig | None = None,
    out: str | os.PathLike | None = None,
    progress: Callable[[str], None] | None = None,
) -> TrainResult:
    """Train `num_seeds` agents at once.

    Args:
      objective: an Objective, a name that `learned_objectives.load` knows, a file, or the directory of a run.
      env: a name that `envs.make` knows, or an environment of gymnax's interface. In a distribution of worlds, as
        "gridworld/all", each seed has its own level.
      total_steps: environment steps of each agent; rounded down to whole rollouts.
      seed: agent number i of a seed has the same key whatever `num_seeds`; rounding may still part their ways.
      num_evals: points of the learning curve.
      chunk: seeds trained side by side on a device. With a number, less memory, and the same result on any number of devices.
        None: all of its share, or one after another on a CPU whose cache a single agent's minibatch fills; and a seed whose
        minibatches are large, or whose environment is expensive to step, has all cores that others leave it. Or a core for each
        network, if their gradients are clipped apart.
      devices: those that train them (default: all of every process).
      agent, loss: default to `usual_setup(env)`. An Objective given as such keeps its loss settings unless `loss` is given.
      out: a directory for `train.jsonl` and `curve.png`.
      progress: called with a line after each stretch, `print` for instance.

    Warns where an LPG has settings far from those it was searched with.
    Raises, with a sentence:
      ValueError: what cannot be: names, sizes, spaces.
      TypeError: what is of another type. Numbers of steps, seeds and evaluations are ints; 1e6 is a float.
    """
    total_steps = whole("total_steps", total_steps)
    require_counts(num_seeds=num_seeds, num_evals=num_evals, chunk=1 if chunk is None else chunk)
    require_seed(seed)
    require_settings(agent, loss)
    env = envs.name_of(env)
    usual = usual_setup(env)
    learner, task, num_updates = make_life(env, agent or usual.agent, total_steps)
    loaded = resolve_objective(objective)
    if not isinstance(objective, lo.Objective) or loss is not None:
        loaded = (loss or usual.loss).on(loaded)
    available = tuple(devices or jax.devices())
    learner = Agent.fit(learner.env, learner.config, loaded, plan_for(available))
    require_room(learner, num_seeds, available)
    warn_if_far(loaded, learner.config)
    directory = None if out is None else make_directory(out)
    if directory is not None:
        refuse_overwriting(directory / "train.jsonl")
    if chunk is None:
        devices_per_agent = len(available) // num_seeds if jax.process_count() == 1 else 1
        learner = replace(learner, shards=learner.useful_shards(max(devices_per_agent, 1)))
    result = _train(
        learner, as_arrays(loaded), task, num_updates, num_seeds, seed, num_evals, chunk, available, progress
    )
    if jax.process_count() == 1:
        _warn_of_divergence(result)
    if directory is not None:
        _write(
            directory,
            result,
            str(objective) if not isinstance(objective, lo.Objective) else "objective",
            env,
            seed,
        )
    return result


def _warn_of_divergence(result: TrainResult) -> None:
    """Where agents have no final return because they diverged, or because their environment gives no numbers."""
    lost = int(np.isnan(result.returns[:, -1]).sum())
    if not lost:
        return
    gone = np.asarray(jax.vmap(diverged)(result.state))
    env = result.agent.env
    agents = f"{lost} of {len(gone)} {'agents' if len(gone) > 1 else 'agent'}"
    if (fault := not_finite(env)) is not None:
        advise(f"{env.name} {fault}, so {agents} ended without a return: envs.check tests an environment.")
    elif gone.any():
        agents = f"{int(gone.sum())} of {len(gone)} {'agents' if len(gone) > 1 else 'agent'}"
        advise(f"{agents} diverged and ended without a return: a lower learning rate (agent.learning_rate) may help.")


def make_life(env_name: str, config: AgentConfig, total_steps: int) -> tuple[Agent, Task, int]:
    """(agent, task, number of updates) for an environment by name."""
    env, env_params = envs.make(env_name)
    agent = Agent(env, config)
    agent.networks  # raises here, with a sentence, for spaces that no head serves  # noqa: B018
    return agent, agent.task(env_params, total_steps), config.num_updates(total_steps)


def require_room(agent: Agent, num_seeds: int, devices: Sequence[Any] | None = None) -> None:
    """ValueError where the states of all agents, with one rollout, are more than the memory that all these devices have left."""
    each, rollout = _sizes(agent)
    needed, left = num_seeds * each + rollout, free_memory(devices) * len(devices or jax.devices())
    if needed > left:
        raise ValueError(
            f"num_seeds is {num_seeds}, and that many agents do not fit into memory: they need {needed / 1e9:,.1f} GB or more, "
            f"and {left / 1e9:,.1f} GB are left. Take fewer, or smaller ones (agent.num_envs, agent.num_steps, agent.hidden)."
        )


@lru_cache(maxsize=64)
def _sizes(agent: Agent) -> tuple[int, int]:
    """Bytes of an agent's state, and of the observations of one rollout."""
    env, config = agent.env, agent.config
    task = agent.task(env.default_params, config.steps_per_update)
    state = jax.tree.leaves(jax.eval_shape(agent.init, task, jax.random.key(0)))
    seen = env.observation_space(env.default_params).shape
    return sum(x.size * x.dtype.itemsize for x in state), 4 * config.steps_per_update * math.prod(seen)


def _train(agent, objective, task, num_updates, num_seeds, seed, num_evals, chunk, devices, progress) -> TrainResult:
    num_evals = min(num_evals, num_updates)
    start, live = _programs(agent, chunk, devices)
    root = jax.random.key(seed)
    keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.arange(num_seeds))
    each = None  # a task for each seed
    if agent.env.sample_level is not None:
        each = jax.jit(jax.vmap(lambda key: _own_level(agent, task, key)))(keys)
    stops = np.asarray(stretches(num_updates, num_evals))
    began = time.monotonic()
    state, returns = start(task, (keys, each)), []
    for i in range(num_evals):
        bounds = (jnp.int32(stops[i]), jnp.int32(stops[i + 1]))
        state, at = live((objective, task, bounds), (state, each))
        returns.append(np.asarray(at))
        if progress is not None:
            steps = int(stops[i + 1]) * agent.config.steps_per_update
            rate = steps * num_seeds / (time.monotonic() - began)
            progress(f"{steps:>12,} env steps  return {np.mean(at):9.2f}  {rate / 1e3:,.0f}k env steps/s")
    env_steps = stops[1:].astype(np.int64) * agent.config.steps_per_update
    alone = replace(agent, shards=1)  # what is done with it from here on is done on one device
    return TrainResult(np.stack(returns, axis=1), env_steps, alone, task if each is None else each, state)


@lru_cache(maxsize=64)
def _programs(agent: Agent, chunk: int | None, devices: tuple[Any, ...]):
    """The compiled birth and stretch of life of this agent, over seeds; one of each for every objective of a kind."""

    def start(task: Task, item):
        key, own = item
        return agent.init(task if own is None else own, key)

    def live(shared, item):
        (objective, task, bounds), (state, own) = shared, item
        task = task if own is None else own
        state, returned = agent.stretch(objective, task, state, *bounds)
        return state, jnp.where(diverged(state), jnp.nan, returned)

    how = {"chunk": chunk, "devices": devices, "team": agent.shards, "vmap": agent.vmap}
    return parallel.sharded_map(start, **how), parallel.sharded_map(live, **how)


def _own_level(agent: Agent, task: Task, key: jax.Array) -> Task:
    """The same task on the level that belongs to an agent's key."""
    return task.replace(env_params=agent.env.sample_level(jax.random.fold_in(key, TASK)))


def refuse_overwriting(path: Path) -> None:
    if path.exists():
        raise ValueError(f"{path} exists already: choose another --out, or remove it.")


def make_directory(out: str | os.PathLike) -> Path:
    path = directory_of(out)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ValueError(f"Cannot write to {path} ({error.strerror}): choose another --out.") from None
    if (
        not os.access(path, os.W_OK)
        or str(path.resolve()).startswith(("/proc/", "/sys/"))
        or path.resolve() == Path("/proc")
    ):
        raise ValueError(f"Cannot write to {path}: choose another --out.")
    return path


def as_json(returns: np.ndarray) -> list:
    """Nested lists, with null where no episode had ended yet."""
    return np.where(np.isnan(returns), None, returns.astype(object)).tolist()


def _write(path: Path, result: TrainResult, objective: str, env: str, seed: int) -> None:
    from discover import plots

    rows: list[dict[str, Any]] = [
        {
            "objective": objective,
            "env": env,
            "seed": seed,
            "env_steps": int(n),
            "returns": r.tolist(),
        }
        for n, r in zip(result.env_steps, result.returns.T, strict=True)
    ]
    (path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plots.learning_curves({objective: result}, title=env).savefig(path / "curve.png", dpi=150)
