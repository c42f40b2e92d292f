"""What each device computes and sends as a search is spread over more of them: `python -m benchmarks.width`.

Weak scaling by counting, not by timing: two cores cannot show 64 devices at work. For 1 to 64 virtual devices, and a population
that grows with them (two pairs a device), the generation's own program is compiled, and read: the floating-point operations of
one device, the collectives in it, and the bytes of fitness that every process must hear of afterwards. XLA counts what is in a
loop once; so how often each loop turns is read as well, and must be the same on any number of devices.

The reasoning: where a device's operations do not grow and only fitness is exchanged, the time of a generation is that of one
device's lives plus one gather of 4 bytes a candidate and environment, microseconds on any network that joins accelerators, beside
lives of minutes. What is left to lose is waiting for the slowest device: lives of one length cost the same, for there is no
branch in them, and lives of different length are dealt out by `parallel.balance`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

from benchmarks.record import ROOT, provenance

DEVICES = (1, 2, 4, 8, 16, 32, 64)
PAIRS = 2  # of each device
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


def count(devices: int) -> dict[str, Any]:
    """In this process, which has so many devices."""
    import jax

    from discover import recipes
    from discover.searches.registry import search_for

    base = recipes.lpo_minatar()
    population = 2 * PAIRS * devices
    search = search_for(
        recipes.replace(
            base,
            envs=base.envs[:1],
            total_steps=65_536,
            learning_rates=base.learning_rates[:1],
            search=recipes.replace(base.search, population=population, chunk=1),
        )
    )
    ((program, arguments),) = search.programs(search.init()).values()
    compiled = program.lower(*arguments).compile()
    text = compiled.as_text()
    return {
        "devices": jax.device_count(),
        "population": population,
        "operations": compiled.cost_analysis()["flops"],  # of one device, a turn of every loop
        "turns": sorted(map(int, re.findall(r'known_trip_count":{"n":"(\d+)"', text))),
        "collectives": sum(len(re.findall(rf"= \S+ {name}\(", text)) for name in COLLECTIVES),
        "fitness_bytes": 4 * population * len(search.settings),
        "parameters_bytes": sum(x.nbytes for x in jax.tree.leaves(search.template)),
    }


def draw(rows: list[dict[str, Any]], path) -> None:
    from matplotlib.figure import Figure

    from discover.plots import COLOURS

    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    devices = [row["devices"] for row in rows]
    left.plot(devices, [row["operations"] / rows[0]["operations"] for row in rows], "o-", color=COLOURS[0])
    left.set(ylabel="operations of one device, 1 device = 1", ylim=(0, 2))
    right.plot(
        devices, [row["fitness_bytes"] for row in rows], "o-", color=COLOURS[1], label="fitness, gathered by all"
    )
    right.set(ylabel="bytes a generation", yscale="log", ylim=(1, 1e6))
    right.axhline(
        rows[0]["parameters_bytes"],
        color=COLOURS[2],
        linestyle="--",
        label="a candidate, never sent",
    )
    right.legend(frameon=False, fontsize=8)
    for axis in (left, right):
        axis.set(
            xlabel=f"devices ({PAIRS} pairs each)", xscale="log", xticks=devices, xticklabels=list(map(str, devices))
        )
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=150)


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(count(int(sys.argv[1]))))
        return
    rows = []
    for devices in DEVICES:
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.width", str(devices)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
        if rows[-1]["turns"] != rows[0]["turns"]:
            raise RuntimeError(f"{devices} devices turn other loops than one does: {rows[-1]['turns']}.")
    results = ROOT / "benchmarks/results"
    (results / "width.json").write_text(json.dumps(provenance() | {"rows": rows}, indent=1) + "\n")
    draw(rows, results / "width.png")


if __name__ == "__main__":
    main()
