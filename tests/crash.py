"""A tiny run, in this process or in one of its own, to be killed: for test_run, test_cli and benchmarks/unbreakable.py."""

from __future__ import annotations

import atexit
import copy
import dataclasses
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from jax import monitoring

from discover.commands import meta_train
from discover.runs import loop as run
from discover.runs.store import Store
from discover.searches import registry
from discover.searches.outer_loop import OuterLoop
from discover.searches.problem import Problem

REPO = Path(__file__).parents[1]
LONG = "DISCOVER_LONG_TESTS" in os.environ  # every death that tests know of, where otherwise some are left out
TIMING = ("seconds", "loop_seconds", "steps_per_second")

# Small, and yet its search moves: a generation takes 20 ms, and a checkpoint 100.
TINY = {
    "envs": "probe/observation_action",
    "total_steps": 2048,
    "generations": 16,
    "evaluate_every": 4,
    "evaluation_seeds": 4,
    "checkpoint_every": 1,
    "objective.width": 4,
    "seed": 5,
    "agent.num_envs": 4,
    "agent.num_steps": 32,
    "agent.num_epochs": 4,
    "agent.num_minibatches": 1,
    "agent.hidden": 8,
    "agent.learning_rate": 0.01,
    "search.population": 4,
    "search.sigma": 1.0,
    "search.learning_rate": 0.1,
    "search.chunk": 1,
}


# The same for a search by meta-gradient, with all that can be in its state: lives that roll on, an outer critic, a buffer.
TINY_GRADIENT = {
    "total_steps": 512,
    "generations": 16,
    "evaluate_every": 4,
    "evaluation_seeds": 4,
    "checkpoint_every": 1,
    "seed": 5,
    "agent.num_envs": 4,
    "agent.num_steps": 16,
    "objective.hidden": 8,
    "search.members": 8,
    "search.window": 2,
    "search.chunk": 2,
    "search.learning_rate": 0.1,
    "curriculum.size": 8,
    "fitness_episodes": 4,
}


# The same for a search by gradients of whole lives, of eight updates each.
TINY_WHOLE_LIFE = {name: value for name, value in TINY.items() if not name.startswith(("search.", "objective."))} | {
    "total_steps": 256,
    "agent.num_epochs": 1,
    "search.lives": 4,
    "search.chunk": 1,
    "search.points": 2,
    "search.base": 3,
}
TINIES = {"quickstart": TINY, "whole_life_small": TINY_WHOLE_LIFE}  # any other has those of a meta-gradient


def arguments(out: str | Path, *, of: str = "quickstart", **changes) -> list[str]:
    """The command line of the tiny run, after `discover`."""
    tiny = TINIES.get(of, TINY_GRADIENT)
    flags = [word for name, value in (tiny | changes).items() for word in (_flag(name), str(value))]
    return ["meta-train", of, "--out", str(out), *flags]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@functools.cache
def recipe(**changes):
    """The recipe of that command line."""
    return meta_train.parse(arguments("out", **changes)[1:]).recipe


def environment(devices: int = 4) -> dict[str, str]:
    """Of a child: so many virtual devices, the compiler's flags of the tests, and their compiled programs."""
    kept = {k: v for k, v in os.environ.items() if k == "XLA_FLAGS" or not k.startswith(("JAX_", "XLA_"))}
    return kept | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": str(REPO / ".jax_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "GIT_DIR": os.devnull,  # the record names the commit, and the checkout may change during the run
    }


def start(out: Path, *, devices: int = 4, place: tuple[str, ...] = (), **changes) -> subprocess.Popen:
    """`place`: the flags that say where it stands among other processes."""
    return subprocess.Popen(
        [sys.executable, "-m", "discover", *arguments(out, **changes), *place],
        cwd=REPO,
        env=environment(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_in_terminal(out: Path) -> tuple[subprocess.Popen, int]:
    """In the foreground of a terminal of its own; to close the descriptor is to close that."""
    terminal, inside = os.openpty()
    there = (  # not even if these tests are under nohup is the signal ignored there
        "import os, signal, sys; os.login_tty(0); signal.signal(signal.SIGHUP, signal.SIG_DFL); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", there, "-m", "discover", *arguments(out)]
    process = subprocess.Popen(command, cwd=REPO, env=environment(1), stdin=inside)
    os.close(inside)
    return process, terminal


def finish(out: Path, **options) -> str:
    """Run to the end; what it printed."""
    with start(out, **options) as process:
        stdout, stderr = process.communicate()
    assert process.returncode == 0, (process.returncode, stdout, stderr)
    return stdout + stderr


@dataclass(frozen=True)
class Moment:
    """When to kill: after a generation was logged, perhaps while a checkpoint is being written."""

    generation: int  # -1: as the process starts
    writing: bool
    delay: float  # seconds after that

    def wait(self, process: subprocess.Popen, out: Path) -> bool:
        """False if the process ended before."""
        while process.poll() is None:
            if self._come(out):
                time.sleep(self.delay)
                return process.poll() is None
            time.sleep(0.001)
        return False

    def _come(self, out: Path) -> bool:
        return last_generation(out) >= self.generation and (not self.writing or is_writing(out))


def random_moment(chance: random.Random, out: Path, *, stride: int) -> Moment:
    """Up to `stride` generations ahead of what is logged; now and then right at the start."""
    if chance.random() < 0.15:
        return Moment(-1, False, chance.uniform(0.0, 5.0))
    ahead = last_generation(out) + chance.randint(1, stride)
    writing = chance.random() < 0.5
    return Moment(ahead, writing, chance.uniform(0.0, 0.05 if writing else 0.3))


def last_moment(chance: random.Random, last: int) -> Moment:
    """In the last generation, in the writing of its checkpoint, or in what comes after."""
    writing = chance.random() < 0.5
    return Moment(
        last - (not writing and chance.random() < 0.5), writing, chance.uniform(0.0, 0.05 if writing else 0.15)
    )


def kill(out: Path, moment: Moment, **changes) -> bool:
    """Start or resume the run, and SIGKILL it at that moment; False if it had ended by then."""
    with start(out, **changes) as process:
        if moment.wait(process, out):
            process.send_signal(signal.SIGKILL)
        _, stderr = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), (process.returncode, stderr)
    return process.returncode == -signal.SIGKILL


def is_writing(out: Path) -> bool:
    """Whether a checkpoint is half written."""
    checkpoints = out / "checkpoints"
    return checkpoints.exists() and any("tmp" in name for name in os.listdir(checkpoints))


def last_generation(out: Path) -> int:
    metrics = out / "metrics.jsonl"
    return metrics.read_text().count("\n") - 1 if metrics.exists() else -1


def logged(out: Path) -> list[dict]:
    """Every line of the log, without what a clock says."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMING} for row in rows]


def exported(out: Path) -> bytes:
    return (out / "objective.safetensors").read_bytes()


@functools.cache
def compiled(recipe):
    loop = OuterLoop(Problem(recipe))
    for part, names in (
        (loop, ("_keep_best",)),
        (loop.problem, ("lengths", "_held_out_lengths", "_evaluations", "lives")),
        (loop.search, ("_ask", "_tell", "_window", "_windows", "_births", "_apply", "_fresh", "_reborn", "_programs")),
    ):
        for name in names:
            getattr(part, name, None)
    return loop


def sharing_programs(problem):
    """An outer loop whose programs are compiled once for all tests: how long a run is does not enter them."""
    loop = copy.copy(compiled(dataclasses.replace(problem.recipe, generations=1, checkpoint_every=1)))
    loop.problem, loop.search = copy.copy(loop.problem), copy.copy(loop.search)
    loop.search.problem = loop.problem
    if hasattr(loop.search, "worlds"):  # of a search by meta-gradient
        loop.search.worlds = [copy.copy(world) for world in loop.search.worlds]
        for world in loop.search.worlds:
            world.problem = loop.problem
    loop.recipe = loop.problem.recipe = problem.recipe
    loop.template = loop.problem.template = problem.template
    return loop


def search(out, **changes):
    """The same run in this process."""
    still = mock.patch.dict(os.environ, GIT_DIR=os.devnull)
    with still, mock.patch.object(registry, "OuterLoop", sharing_programs):
        return run.meta_train(recipe(**changes), out, quiet=True)


class Compilations:
    """How many programs have been handed to XLA, from a cache or not."""

    def __init__(self):
        self.count = 0

    def __call__(self, event, duration, **_):
        self.count += event == "/jax/core/compile/backend_compile_duration"

    def __enter__(self):
        monitoring.register_event_duration_secs_listener(self)
        return self

    def __exit__(self, *_):
        monitoring.unregister_event_duration_listener(self)


class First(NamedTuple):
    result: run.Result
    compilations: dict[int, int]  # generation: how many there were until its row was logged


@functools.cache
def first(**changes) -> First:
    """The first run in this process, which finds nothing compiled."""
    directory = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, directory)
    counts = {}
    log = Store.log

    def count_and_log(store, row):
        counts[row["generation"]] = compilations.count
        log(store, row)

    with mock.patch.object(Store, "log", count_and_log), Compilations() as compilations:
        result = search(Path(directory, "run"), **changes)
    return First(result, counts)
