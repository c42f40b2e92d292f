"""What a step of a search over LPG costs: `python -m benchmarks.meta`. The sizes are those of the reference figures.

GROOVE's own code needs packages that cannot be installed beside today's JAX, so its figures, measured with patches on two such
cores on another day, stand beside ours as a reference only. What is a ratio here, replay against uniform, is of one process.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import jax
import numpy as np

from benchmarks.record import ROOT, provenance
from discover import recipes
from discover.searches.outer_loop import OuterLoop
from discover.searches.registry import search_for

STEPS = 10
REFERENCE = {
    "metagrad-16": {"steps_per_s": 21_900, "peak_rss_mb": 5569, "first_s": 13.7},
    "evolution-4": {"seconds": 25.2, "peak_rss_mb": 1506, "first_s": 7.7},
    "replay-2": {"seconds": 7.66, "peak_rss_mb": 2083, "first_s": 19.1},
    "uniform-2": {"seconds": 0.69, "peak_rss_mb": 1940, "first_s": 14.0},
}


def gradient(members: int, chunk: int, kind: str) -> OuterLoop:
    base = recipes.groove()
    return search_for(
        dataclasses.replace(
            base,
            search=dataclasses.replace(base.search, members=members, chunk=chunk),
            curriculum=dataclasses.replace(base.curriculum, kind=kind, size=64, chunk=1),
        )
    )


def evolution() -> OuterLoop:
    base = recipes.ta_lpg()
    return search_for(dataclasses.replace(base, search=dataclasses.replace(base.search, population=4, chunk=1)))


SEARCHES = {
    "metagrad-16": (lambda: gradient(16, 4, "uniform"), STEPS),
    "uniform-2": (lambda: gradient(2, 1, "uniform"), 150),  # three lifetimes
    "replay-2": (lambda: gradient(2, 1, "plr"), 150),
    "evolution-4": (evolution, 20),
}


def measure(name: str) -> dict:
    """In this process: seconds of every step but those that compile, and what they add up to."""
    make, steps = SEARCHES[name]
    search = make()
    state = search.init()
    began = time.perf_counter()
    state, _ = search.generation(state)
    jax.block_until_ready(state.search)
    first = time.perf_counter() - began
    for _ in range(60 if "replay" in name or "uniform" in name else 0):  # until lives have ended, and all is compiled
        state, _ = search.generation(state)
    seconds, updates = [], int(state.updates)
    for _ in range(steps):
        began = time.perf_counter()
        state, _ = search.generation(state)
        jax.block_until_ready(state.search)
        seconds.append(time.perf_counter() - began)
    total = (int(state.updates) - updates) * search.recipe.agent.steps_per_update
    return {
        "seconds": float(np.mean(seconds)),
        "seconds_median": median(seconds),
        "steps_per_s": total / sum(seconds),
        "first_s": first,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        "steps": steps,
    }


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return
    found = {}
    for name in SEARCHES:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.meta", name], cwd=ROOT, capture_output=True, text=True, check=True
        )
        found[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, json.dumps(found[name]), "reference", json.dumps(REFERENCE[name]), flush=True)
    ratio = found["replay-2"]["seconds"] / found["uniform-2"]["seconds"]
    print(f"replay / uniform, time of a meta-step: {ratio:.2f}")
    report = {**provenance(), "measured": found, "reference": REFERENCE, "replay_over_uniform": ratio}
    Path(ROOT / "benchmarks/results/meta.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
