"""Meta-gradients through whole lives: exactness, memory, time, and how large they are. `python -m benchmarks.whole_life`

The agent is that of CartPole (4 environments, 128 steps, 16 gradient steps an update), the objective a time-aware soft clip with
the weights around it. Four ways through a life of N updates:

    plain          reverse mode through a scan: everything is stored
    each update    one checkpoint for each update: N agents are stored
    recursive      `checkpointed_scan` with its base: about k log_k N agents are stored
    recursive, mixed    the same, with forward over reverse mode through each gradient step: what the search does

`error` is |g - g_plain| / |g_plain| in float64. `temp_mb` is what the compiler plans for temporaries, `rss_mb` how far the memory
of a process of its own rises while the program runs, and `seconds` the shortest of several runs, in turns in one process.
`growth` reports the norm of the gradient of single lives by their length, over seeds, for several optimisers of the agent.

Each measurement has a process of its own. Rows are written as they come, and a repeated call continues.
Writes benchmarks/results/whole-life.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from benchmarks.record import ROOT, provenance
from discover.agents.agent import Agent
from discover.agents.config import AgentConfig
from discover.agents.mixed_mode import differentiated
from discover.agents.objectives import as_arrays
from discover.runs import recipes
from discover.runs.store import write_text
from discover.searches.whole_life import WholeLife, WholeLifeConfig
from envs import make

OUT = ROOT / "benchmarks/results/whole-life.json"
SEED = 20_261_128
BASE = WholeLifeConfig().base
WAYS = ("plain", "each update", "recursive", "recursive, mixed")
LENGTHS = (16, 64, 256)
GROWTH = (1, 2, 4, 8, 16, 32, 64)
SEEDS = 6
AGENTS = {
    "adam": {"adam_eps": 1e-5},
    "adam, eps 1e-3": {"adam_eps": 1e-3},
    "sgd": {"optimizer": "sgd", "learning_rate": 0.1},
}


class PlainLife(WholeLife):
    """A whole life by a scan without checkpoints."""

    def loss(self, objective, task, state):
        def update(state, _):
            return self.agent.step(objective, task, state)[0], None

        state, _ = jax.lax.scan(update, state, None, length=self.updates)
        loss, reward = self._look(objective, task, state)
        return loss, (reward, jnp.bool_(False))


def life(way: str, updates: int, env: str = "CartPole-v1", **agent: Any) -> tuple[WholeLife, Any]:
    """(a life of one of the three ways, the objective)."""
    recipe = recipes.whole_life_small()
    config = AgentConfig(**(vars(recipe.agent) | {"adam_eps": 1e-5} | agent))
    objective = as_arrays(recipe.template())
    kind = PlainLife if way == "plain" else WholeLife
    base = max(updates, 2) if way == "each update" else BASE
    mode = "mixed" if way == "recursive, mixed" else "reverse"
    found = differentiated(Agent.fit(make(env)[0], config, objective), mode)
    return kind(WholeLifeConfig(base=base, differentiation=mode), found, updates), objective


def program(whole: WholeLife) -> Any:
    """(objective, task, newborn) -> the gradient in one vector; a function to be jitted."""

    def gradient(objective, task, state):
        return ravel_pytree(jax.grad(lambda o: whole.loss(o, task, state)[0])(objective))[0]

    return gradient


def newborn(whole: WholeLife, seed: int = 0, updates: int | None = None):
    steps = (updates or whole.updates) * whole.agent.config.steps_per_update
    task = whole.agent.task(whole.agent.env.default_params, steps)
    return task, whole.agent.init(task, jax.random.fold_in(jax.random.key(SEED), seed))


def wide(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype("float64") if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def error(way: str, updates: int) -> dict[str, Any]:
    """Of the recursive gradient against the plain one, in float64."""
    with jax.enable_x64(True):
        found = []
        for each in ("plain", way):
            whole, objective = life(each, updates)
            task, state = newborn(whole)  # the environment computes in float32
            state = state.replace(params=wide(state.params), opt_state=wide(state.opt_state))
            found.append(np.asarray(jax.jit(program(whole))(wide(objective), task, state)))
    plain, ours = found
    return {"error": float(np.linalg.norm(ours - plain) / np.linalg.norm(plain)), "norm": float(np.linalg.norm(plain))}


def memory(way: str, updates: int, runs: bool = True) -> dict[str, Any]:
    """What the compiler plans, and, where the program is run, how far this process rises above where it stood."""
    whole, objective = life(way, updates)
    arguments = (objective, *newborn(whole))
    began = time.monotonic()
    compiled: Any = jax.jit(program(whole)).lower(*arguments).compile()
    found = {
        "compile_seconds": round(time.monotonic() - began, 1),
        "temp_mb": compiled.memory_analysis().temp_size_in_bytes / 1e6,
    }
    if runs:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what it is now
        before = _peak_mb()
        jax.block_until_ready(compiled(*arguments))
        found |= {"rss_mb": _peak_mb() - before}
    return found


def _peak_mb() -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1e3


def seconds(updates: int, repeats: int) -> dict[str, Any]:
    """The shortest of several runs of each way, in turns."""
    ways, times = {}, {}
    for way in WAYS:
        whole, objective = life(way, updates)
        arguments = (objective, *newborn(whole))
        compiled = jax.jit(program(whole)).lower(*arguments).compile()
        jax.block_until_ready(compiled(*arguments))
        ways[way], times[way] = (compiled, arguments), []
    for _ in range(repeats):
        for way, (compiled, arguments) in ways.items():
            began = time.process_time(), time.monotonic()
            jax.block_until_ready(compiled(*arguments))
            times[way].append((time.process_time() - began[0], time.monotonic() - began[1]))
    cpu = {way: min(each)[0] for way, each in times.items()}
    return {
        "cpu_seconds": cpu,
        "seconds": {way: min(wall for _, wall in each) for way, each in times.items()},
        "times plain": {way: value / cpu["plain"] for way, value in cpu.items()},
        "repeats": repeats,
    }


def growth(env: str, agent: str) -> dict[str, Any]:
    """Norms of the gradients of single lives, by length: one program, whose agents do not change after their lifetime."""
    whole, objective = life("recursive, mixed", GROWTH[-1], env, **AGENTS[agent])
    task, _ = newborn(whole)
    states = jax.vmap(lambda seed: newborn(whole, seed)[1])(jnp.arange(SEEDS))
    run = jax.jit(jax.vmap(program(whole), in_axes=(None, None, 0)))
    rows = {}
    for updates in GROWTH:
        lifetime = jnp.float32(updates * whole.agent.config.steps_per_update)
        found = np.asarray(run(objective, task.replace(lifetime=lifetime), states), np.float64)
        norms = np.linalg.norm(found, axis=1)
        rows[str(updates)] = {"norms": [float(x) for x in norms], "median": float(np.median(norms))}
        unit = found / np.maximum(norms[:, None], 1e-300)
        pairs = (unit @ unit.T)[np.triu_indices(SEEDS, 1)]
        rows[str(updates)]["mean cosine between seeds"] = float(pairs.mean())
        print(env, agent, updates, f"{np.median(norms):.3g}", f"{pairs.mean():.2f}", flush=True)
    return rows


def jobs(quick: bool) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name of a row -> (function, arguments)."""
    lengths = LENGTHS[:1] if quick else LENGTHS
    found = {f"error {way} 16": ("error", {"way": way, "updates": 16}) for way in WAYS[2:]}
    for updates in lengths:
        for way in WAYS:
            runs = way != "plain" or updates < 256  # ten gigabytes
            found[f"memory {way} {updates}"] = ("memory", {"way": way, "updates": updates, "runs": runs})
    for updates in lengths[:2]:
        found[f"seconds {updates}"] = ("seconds", {"updates": updates, "repeats": 3})
    if not quick:
        for env, agent in (
            *(("CartPole-v1", each) for each in AGENTS),
            ("Acrobot-v1", "adam"),
        ):
            found[f"growth {env} {agent}"] = ("growth", {"env": env, "agent": agent})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the shortest lives alone; nothing is written")
    parser.add_argument("--only", help="rows whose name begins so")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        function, arguments = json.loads(args.job)
        print("RESULT " + json.dumps(globals()[function](**arguments)))
        return 0
    report = json.loads(OUT.read_text()) if OUT.exists() and not args.quick else {}
    rows = report.get("rows", {})
    for name, job in jobs(args.quick).items():
        if name in rows or not name.startswith(args.only or ""):
            continue
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.whole_life", "--job", json.dumps(job)],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            cwd=ROOT,
        )
        if done.returncode:
            print(f"{name}: failed with status {done.returncode}", flush=True)
            return 1
        rows[name] = json.loads(done.stdout.rpartition("RESULT ")[2])
        print(name, {key: value for key, value in rows[name].items() if not isinstance(value, dict)}, flush=True)
        if not args.quick:
            head = provenance() | {"seed": SEED, "seeds": SEEDS, "base": BASE, "agents": AGENTS}
            write_text(OUT, json.dumps(head | {"rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
