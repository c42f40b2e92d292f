"""Seconds from a recipe to a step that is ready to run, for each recipe there is: `python -m benchmarks.compilation`.

The programs of a step (`OuterLoop.programs`) are traced and compiled at the recipe's own sizes, and nothing is run but what makes
their arguments. Each measurement is a fresh process. The first finds an empty cache directory, which is as good as none, and
fills it; the second finds what the first compiled, as a run that resumes does. What the two did is counted, not supposed: a cold
one that read a program, or a warm one that did not read them all, fails.

The references are of peers that cannot be installed beside today's JAX, on two such cores on another day: trace and compilation
of a step, for scale alone, and only where the recipe is of the same kind. A recipe of two environments compiles two programs,
and its seconds are those of both.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from statistics import median
from typing import Any

from benchmarks.record import ROOT, provenance
from benchmarks.throughput import child_environment

# LPO by evolution on Breakout; LPG by meta-gradient; TA-LPG by evolution.
LPO, GROOVE, TA_LPG = 11.6, 13.7, 7.7
REFERENCES = {
    **dict.fromkeys(("lpo_minatar", "lpo_small", "ta_lpo", "ta_lpo_small"), LPO),
    **dict.fromkeys(("lpg", "groove", "lpg_small", "groove_small"), GROOVE),
    **dict.fromkeys(("ta_lpg", "lpg_es", "ta_lpg_small", "lpg_es_small"), TA_LPG),
}
READ = "/jax/compilation_cache/cache_hits"


def measure(name: str) -> dict[str, Any]:
    """In this process."""
    import jax

    from discover import recipes
    from discover.searches.registry import search_for

    events = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
    recipe = recipes.get(name)
    if any(env.startswith("brax/") for env in recipe.envs):
        import envs.suites.brax  # noqa: F401  # `envs.make` imports it late
    search = search_for(recipe)
    programs = search.programs(search.init())
    jax.block_until_ready(
        [arguments for _, arguments in programs.values()]
    )  # what makes them would be timed beside the tracing
    trace, compilation, read = 0.0, 0.0, 0
    for program, arguments in programs.values():
        began = time.perf_counter()
        lowered = program.lower(*arguments)
        traced = time.perf_counter()
        before = events.count(READ)
        lowered.compile()
        read += events.count(READ) - before
        trace += traced - began
        compilation += time.perf_counter() - traced
    return {
        "programs": len(programs),
        "trace_s": trace,
        "compile_s": compilation,
        "read": read,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        "devices": jax.device_count(),
    }


def pair(name: str) -> dict[str, dict[str, Any]]:
    """Cold, then warm. Raises RuntimeError where the cache did not do what is measured."""
    with tempfile.TemporaryDirectory() as cache:
        # JAX keeps what took a second or more; here it keeps all
        environment = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        found = {}
        for side in ("cold", "warm"):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.compilation", "--measure", name],
                cwd=ROOT,
                env=child_environment() | environment,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            found[side] = json.loads(done.stdout.splitlines()[-1])
    for side, expected in (("cold", 0), ("warm", found["cold"]["programs"])):
        if found[side]["read"] != expected:
            raise RuntimeError(f"{name}, {side}: {found[side]['read']} programs came from the cache, not {expected}.")
    return found


def summarise(pairs: list[dict[str, dict[str, Any]]], reference: float | None) -> dict[str, Any]:
    def total(side: str) -> float:
        return median(pair[side]["trace_s"] + pair[side]["compile_s"] for pair in pairs)

    return {
        "programs": pairs[0]["cold"]["programs"],
        "trace_s": median(pair["cold"]["trace_s"] for pair in pairs),
        "compile_s": median(pair["cold"]["compile_s"] for pair in pairs),
        "cold_s": total("cold"),
        "warm_s": total("warm"),
        "reference_s": reference,
        "of_reference": None if reference is None else total("cold") / reference,
        "peak_rss_mb": median(pair["cold"]["peak_rss_mb"] for pair in pairs),
    }


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m benchmarks.compilation")
    p.add_argument("names", nargs="*", help="recipes; all of them without a name. Of some alone nothing is saved")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--measure", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    from discover.runs.recipes import RECIPES

    pairs: dict[str, list] = {name: [] for name in args.names or RECIPES}
    for repeat in range(args.repeats):  # all in turn, so that an hour in which the machine is slow is everyone's
        for name in pairs:
            pairs[name].append(pair(name))
            print(f"{repeat + 1}/{args.repeats} {name}", file=sys.stderr, flush=True)
    rows = {name: summarise(found, REFERENCES.get(name)) for name, found in pairs.items()}
    columns = (
        "recipe",
        "programs",
        "trace s",
        "compile s",
        "**both**",
        "reference s",
        "of the reference",
        "cached s",
        "peak RSS MB",
    )
    print("| " + " | ".join(columns) + " |\n" + "|" + "---|" * len(columns))
    for name, row in rows.items():
        reference = "-" if row["reference_s"] is None else f"{row['reference_s']:.1f}"
        ratio = "-" if row["of_reference"] is None else f"{row['of_reference']:.2f}"
        print(
            f"| {name} | {row['programs']} | {row['trace_s']:.1f} | {row['compile_s']:.1f} | **{row['cold_s']:.1f}** "
            f"| {reference} | {ratio} | {row['warm_s']:.1f} | {row['peak_rss_mb']:,.0f} |"
        )
    if not args.names:
        report = provenance() | {"rows": rows, "pairs": pairs}
        (ROOT / "benchmarks/results/compilation.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
