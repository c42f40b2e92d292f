"""The stages of `benchmarks.accelerators`: `python -m benchmarks.accelerator_stages NAME` prints a JSON line for each result."""

from __future__ import annotations

import argparse
import dataclasses
import glob
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from benchmarks.record import ROOT
from benchmarks.sides import memory, stopwatch, versions
from benchmarks.turns import alone

OBJECTIVES = {"ppo": "CartPole-v1", "lpo": "Breakout-MinAtar", "lpg": "gridworld/dense"}  # and where each is trained
PART = {"lpo_minatar": 262_144, "lpo_brax": 40_960}  # environment steps, of each life that is too long for one stage


def print_row(**row: Any) -> None:
    print(json.dumps(row), flush=True)


def device(tiny: bool) -> None:
    """The card, the versions, and the rates of large products and copies, in float32 as JAX does them by default and in full."""
    import jax
    import jax.numpy as jnp

    card = jax.devices()[0]
    print_row(
        device=card.device_kind, platform=card.platform, count=jax.device_count(), versions=versions(), memory=memory()
    )
    n = 256 if tiny else 8192
    x = jax.random.normal(jax.random.key(0), (n, n))
    for name, dtype, precision in (
        ("float32 default", "float32", None),
        ("float32 highest", "float32", "highest"),
        ("bfloat16", "bfloat16", None),
    ):
        y = x.astype(dtype)
        product = jax.jit(partial(jnp.dot, precision=precision))
        product(y, y).block_until_ready()
        seconds = min(stopwatch(partial(product, y, y)) for _ in range(5))
        exact = np.asarray(y[:64], np.float64) @ np.asarray(y[:, :64], np.float64)
        error = np.abs(np.asarray(product(y, y)[:64, :64], np.float64) - exact).max() / np.abs(exact).max()
        print_row(product=name, tflops=2 * n**3 / seconds / 1e12, relative_error=float(error))
    copy = jax.jit(lambda a: a + 1)
    stopwatch(lambda: copy(x))
    print_row(copy_gb_per_s=2 * x.nbytes / min(stopwatch(lambda: copy(x)) for _ in range(5)) / 1e9)


def ten_updates(path: str, tiny: bool) -> None:
    """Parameters and returns after ten updates of each objective, or two of one in a dry run, into an npz file."""
    import jax

    import discover

    found = {}
    count, chosen = (2, {"ppo": "CartPole-v1"}) if tiny else (10, OBJECTIVES)
    for name, env in chosen.items():
        steps = count * discover.usual_setup(env).agent.steps_per_update
        result = discover.train(name, env, total_steps=steps, num_seeds=2, num_evals=count)
        found[f"{name} returns"] = result.returns
        leaves = jax.tree.leaves(result.state.params)
        found[f"{name} parameters"] = np.concatenate([np.asarray(x).reshape(2, -1) for x in leaves], 1)
    np.savez(path, **found)


def updates(tiny: bool) -> None:
    """Ten updates here and, in another process, on the CPU; and the shipped objectives' probe values."""
    import learned_objectives as lo

    with tempfile.TemporaryDirectory() as directory:
        there, here = (os.path.join(directory, name) for name in ("cpu.npz", "here.npz"))
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        command = [
            sys.executable,
            "-m",
            "benchmarks.accelerator_stages",
            "ten_updates",
            there,
            *(["--tiny"] if tiny else []),
        ]
        child = subprocess.Popen(command, env=environment)
        ten_updates(here, tiny)
        child.wait()
        a, b = np.load(here), np.load(there)
        for name in a.files:
            x, y = a[name], b[name]
            finite = np.isfinite(x) & np.isfinite(y)
            print_row(
                ten_updates=name, relative_difference=float(np.linalg.norm((x - y)[finite]) / np.linalg.norm(y[finite]))
            )
    for name in lo.available():
        recorded = (lo.record(name) or {}).get("probe") if name not in ("a2c", "ppo", "dpo", "mdpo") else None
        if recorded is not None:
            now = np.asarray(lo.probe(lo.load(name)), np.float64)
            print_row(probe=name, largest_difference=float(np.abs(now - np.asarray(recorded, np.float64)).max()))


def probes(tiny: bool) -> None:
    """The agent's tests of probe environments, where the answers are known."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore",
        "tests/test_agent.py",
    ]
    command += [
        "-k",
        "truncation and critic" if tiny else "(truncation or termination or observation_action) and (critic or policy)",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print_row(probes=done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-300:])
    sys.exit(done.returncode)


def recipe_of(name: str, tiny: bool):
    """A recipe at paper scale but for the part of its lives; in a dry run small."""
    from discover import recipes

    recipe = recipes.get(name)
    if tiny:
        recipe = dataclasses.replace(
            recipe,
            envs=("gridworld/small",) if recipe.envs[0].startswith("gridworld/") else recipe.envs[:1],
            learning_rates=recipe.learning_rates[:1],
            agent=dataclasses.replace(recipe.agent, num_envs=32, num_steps=min(8, recipe.agent.num_steps)),
            search=dataclasses.replace(
                recipe.search, **{"members" if recipe.search.kind == "metagrad" else "population": 4}
            ),
            curriculum=dataclasses.replace(recipe.curriculum, chunk=2),
        )
    if name in PART:
        steps = 2 * recipe.agent.steps_per_update if tiny else PART[name]
        recipe = dataclasses.replace(recipe, total_steps=steps)
    return recipe


def search(name: str, tiny: bool) -> None:
    """Steps of a search with the largest chunk that fits: the first with compilation, then two more."""
    import jax

    from discover.devices.plan import plan_for
    from discover.runs.fit import sizes
    from discover.searches.chunks import with_chunk

    recipe = recipe_of(name, tiny)
    for chunk in reversed(sizes(recipe, jax.device_count(), plan_for().turns)):
        try:
            return steps_of(with_chunk(recipe, chunk), tiny)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            print_row(recipe=name, chunk=chunk, fits=False)


def steps_of(recipe: Any, tiny: bool) -> None:
    from discover.devices.parallel import to_default_device
    from discover.searches.registry import search_for

    began = time.perf_counter()
    finder = search_for(recipe)
    state = finder.init()
    born = time.perf_counter() - began

    def step(state):
        before, began = finder.env_steps(state), time.perf_counter()
        state, _ = finder.generation(state)
        to_default_device(finder.mean(state))
        seconds, steps = time.perf_counter() - began, finder.env_steps(state) - before
        print_row(
            recipe=recipe.name,
            chunk=recipe.search.chunk,
            population=recipe.search.items * recipe.search.candidates_per_item,
            life_env_steps=recipe.total_steps,
            birth_s=born,
            seconds=seconds,
            env_steps=steps,
            env_steps_per_s=steps / seconds,
            memory=memory(),
        )
        return state

    state = step(state)
    with alone():
        for _ in range(0 if tiny else 2):
            state = step(state)
        if not tiny:
            print_row(profile=recipe.name, **profiled(lambda: step(state)))


def leg(run: str, out: str, seconds: float) -> None:
    """Go on with a copy of a run, in `out`, until the time is over; it stops with a checkpoint."""
    if seconds < 60:
        print_row(leg=run, skipped=f"{seconds:.0f} s are too few to compile and to go on")
        return
    there = os.path.join(out, "leg")
    shutil.copytree(run, there, dirs_exist_ok=True)
    child = subprocess.Popen([sys.executable, "-m", "discover", "resume", there], cwd=ROOT)
    with suppress(subprocess.TimeoutExpired):
        child.wait(seconds)
    child.send_signal(signal.SIGTERM)
    child.wait()
    with open(os.path.join(there, "metrics.jsonl")) as file:
        print_row(leg=run, generation=json.loads(file.readlines()[-1])["generation"])


def profile(tiny: bool) -> None:
    """Where the time of PPO's lives goes, by kind of kernel, as JAX's profiler saw it."""
    import jax

    import discover

    for env, agents in (("CartPole-v1", 1024), ("Breakout-MinAtar", 256)):
        if tiny and env != "CartPole-v1":
            return
        agents = 2 if tiny else agents
        steps = 4 * discover.usual_setup(env).agent.steps_per_update

        def life(seed: int, env=env, agents=agents, steps=steps):
            return discover.train("ppo", env, total_steps=steps, num_seeds=agents, seed=seed, num_evals=1).state

        stopwatch(lambda: life(0))
        with alone():
            print_row(profile=env, agents=agents, updates=4, **profiled(lambda: jax.block_until_ready(life(1))))


def profiled(call: Callable[[], object]) -> dict[str, Any]:
    """Seconds of the call under JAX's profiler, and `kernels` of it."""
    import jax

    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            seconds = stopwatch(call)
        return {"seconds": seconds, **kernels(directory)}


def kernels(directory: str) -> dict[str, Any]:
    """Milliseconds on the device by kind of kernel, their number, and the share of the time in which the device was busy."""
    path = max(glob.glob(f"{directory}/**/*.trace.json.gz", recursive=True))
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    processes = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    of_device = [e for e in events if e.get("ph") == "X" and "GPU" in processes.get(e["pid"], "")]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("name") == "thread_name"}
    streams = [e for e in of_device if "Stream" in names.get((e["pid"], e["tid"]), "")]
    total, count = Counter(), Counter()
    for e in streams:
        kind = re.sub(r"[_.]?\d+.*$", "", e["name"])[:60]
        total[kind] += e["dur"] / 1e3
        count[kind] += 1
    if not streams:
        return {"kernels": 0}
    first, last = min(e["ts"] for e in streams), max(e["ts"] + e["dur"] for e in streams)
    top = {kind: [round(ms, 2), count[kind]] for kind, ms in total.most_common(14)}
    return {
        "kernels": len(streams),
        "device_ms": sum(total.values()),
        "busy": sum(total.values()) * 1e3 / (last - first),
        "by_kind_ms_and_count": top,
    }


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m benchmarks.accelerator_stages", description=__doc__)
    p.add_argument("stage", choices=("device", "updates", "ten_updates", "probes", "search", "profile", "leg"))
    p.add_argument("argument", nargs="?")
    p.add_argument("--tiny", action="store_true")
    p.add_argument("--out")
    p.add_argument("--seconds", type=float, default=60.0)
    args = p.parse_args()
    if args.stage == "ten_updates":
        ten_updates(args.argument, args.tiny)
    elif args.stage == "search":
        search(args.argument, args.tiny)
    elif args.stage == "leg":
        leg(args.argument, args.out, args.seconds)
    else:
        {"device": device, "updates": updates, "probes": probes, "profile": profile}[args.stage](args.tiny)


if __name__ == "__main__":
    main()
