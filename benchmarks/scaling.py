"""Seconds of a generation against population, lives, environments and horizon: `python -m benchmarks.scaling`.

A search for LPO in lives of CartPole, small enough for all of it to take some eight minutes on two idle cores. One size is varied
at a time, the others stay as in `BASE`, and the fitted exponent of each says how the cost grows: 1 is linear. All of a generation
is in it but compilation. Memory is shown against the horizon: what the compiler says of the step's program, and the peak of a
fresh process that ran two generations of it.

Why it can be believed: all sizes live in one process and take turns in an order that is shuffled for each round, so that a
machine that drifts does so under all of them; a point is the median over rounds, and every single one is saved.
"""

from __future__ import annotations

import json
import random
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import jax
import numpy as np

from benchmarks.record import ROOT, provenance
from benchmarks.throughput import child_environment
from discover import recipes
from discover.devices.parallel import to_default_device
from discover.runs.fit import total_memory
from discover.searches.registry import search_for

BASE = {"population": 8, "lives": 1, "environments": 4, "updates": 16}
SIZES = {
    "population": (4, 8, 16, 32),
    "lives": (1, 2, 4, 8),
    "environments": (4, 8, 16, 32),  # of an agent; its rollouts and minibatches grow with them, their number does not
    "updates": (8, 16, 32, 64, 128),  # of a life: the horizon
}
AXES = {
    "population": "population",
    "lives": "lives of a candidate",
    "environments": "environments of an agent",
    "updates": "updates of a life",
}
ROUNDS = 7


class Size:
    """One search, of its own sizes, that goes on from generation to generation."""

    def __init__(self, *, population: int, lives: int, environments: int, updates: int):
        base = recipes.quickstart()
        agent = recipes.replace(base.agent, num_envs=environments, num_epochs=4)
        evolution = recipes.replace(base.search, population=population, lives=lives, chunk=1)
        total_steps = updates * agent.steps_per_update
        self.search = search_for(recipes.replace(base, total_steps=total_steps, agent=agent, search=evolution))
        self.state = self.search.init()

    def generation(self) -> float:
        """Seconds."""
        began = time.perf_counter()
        self.state = to_default_device(self.search.generation(self.state)[0])
        return time.perf_counter() - began

    def memory(self) -> int:
        """Bytes on a device, as the compiler has it."""
        ((program, arguments),) = self.search.programs(self.state).values()
        return total_memory(program.lower(*arguments).compile())


def measure(sizes: dict[str, tuple[int, ...]], rounds: int) -> tuple[dict[str, list[dict]], list[dict]]:
    """(by what is varied, a row for each size; memory, a row for each horizon)."""
    points = {key(name, n): BASE | {name: n} for name, ns in sizes.items() for n in ns}
    made = {point: Size(**settings) for point, settings in points.items()}
    for size in made.values():
        size.generation()  # compiles
        size.generation()
    seconds = {point: [] for point in made}
    for turn in range(rounds):
        for point in random.Random(turn).sample(sorted(made), len(made)):
            seconds[point].append(made[point].generation())
        print(f"round {turn + 1} of {rounds}", flush=True)
    rows = {
        name: [{"size": n, "seconds": median(seconds[key(name, n)]), "all": seconds[key(name, n)]} for n in ns]
        for name, ns in sizes.items()
    }
    memory = [
        {"updates": n, "program_bytes": made[key("updates", n)].memory(), "peak_rss_bytes": peak_rss(n)}
        for n in sizes["updates"]
    ]
    return rows, memory


def key(name: str, n: int) -> tuple[int, ...]:
    """The sizes that varying one of them comes to: the base is measured once."""
    return tuple((BASE | {name: n}).values())


def peak_rss(updates: int) -> int:
    """Of a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", str(updates)],
        cwd=ROOT,
        env=child_environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def own_peak() -> int:
    """Bytes. On Linux the value of `getrusage` begins with the peak of the process that started this one."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def exponent(rows: list[dict]) -> float:
    return float(np.polyfit(*np.log([[row["size"], row["seconds"]] for row in rows]).T, 1)[0])


def draw(rows: dict[str, list[dict]], memory: list[dict], path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, NullLocator

    from discover.plots import COLOURS

    figure = Figure(figsize=(12.8, 4.0), layout="constrained")
    panels = figure.subplots(1, len(rows), sharey=True)
    for panel, (name, points) in zip(panels, rows.items(), strict=True):
        sizes, seconds = (np.array([point[what] for point in points]) for what in ("size", "seconds"))
        low, high = ([pick(point["all"]) for point in points] for pick in (min, max))
        panel.fill_between(sizes, low, high, color=COLOURS[0], alpha=0.2, linewidth=0, label="fastest to slowest")
        panel.plot(sizes, seconds, "o-", color=COLOURS[0], label=f"median, exponent {exponent(points):.2f}")
        linear = seconds[-1] * sizes / sizes[-1]
        panel.plot(sizes, linear, "--", color="grey", label="linear")
        panel.set(xlabel=AXES[name], xscale="log", yscale="log", xticks=sizes, xticklabels=list(map(str, sizes)))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.grid(alpha=0.25)
        panel.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0.0, 1.0))
    panels[0].set(ylabel="seconds of a generation")
    right = panels[-1].twinx()
    updates = [row["updates"] for row in memory]
    for what, label, colour in (
        ("peak_rss_bytes", "peak RSS", COLOURS[1]),
        ("program_bytes", "the step's program", COLOURS[2]),
    ):
        right.plot(updates, [row[what] / 1e6 for row in memory], "s:", color=colour, markersize=4, label=label)
    right.set(ylabel="MB", ylim=(0, 1.6 * max(row["peak_rss_bytes"] for row in memory) / 1e6))
    right.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0.0, 1.2))
    figure.savefig(path, dpi=150)


def main() -> None:
    if len(sys.argv) > 1:
        size = Size(**BASE | {"updates": int(sys.argv[1])})
        size.generation(), size.generation()
        print(own_peak())
        return
    rows, memory = measure(SIZES, ROUNDS)
    exponents = {name: exponent(points) for name, points in rows.items()}
    results = ROOT / "benchmarks/results"
    report = {"base": BASE, "devices": jax.device_count(), "rows": rows, "exponents": exponents, "memory": memory}
    (results / "scaling.json").write_text(json.dumps(provenance() | report, indent=1) + "\n")
    draw(rows, memory, results / "scaling.png")
    print("| varied | sizes | seconds of a generation | exponent |\n|---|---|---|---|")
    for name, points in rows.items():
        sizes, seconds = (
            ", ".join(format(p[what], spec) for p in points) for what, spec in (("size", ""), ("seconds", ".3f"))
        )
        print(f"| {AXES[name]} | {sizes} | {seconds} | **{exponents[name]:.2f}** |")
    print("\n| updates of a life | the step's program, MB | peak RSS, MB |\n|---|---|---|")
    for row in memory:
        print(f"| {row['updates']} | {row['program_bytes'] / 1e6:.2f} | {row['peak_rss_bytes'] / 1e6:,.0f} |")


if __name__ == "__main__":
    main()
