"""What objectives read off a response surface return: `python -m benchmarks.surface_returns`, after `benchmarks.surface`.

Families that were read off a set of lives (or off several, `--lives 1+2`), beside PPO: in three games and at two lengths of the
lives, with seeds that no cell had; and on Freeway and CartPole, which no lives contain, with the seeds of the validation in
benchmarks/protocol.toml. The group `horizons` is for objectives that were read off short or long lives alone. For pairs of
objectives it reports the probability that a seed of the first returns more than one of the second, by length and over all, with
stratified bootstrap intervals (of one trial, Newcombe's score interval).

Resumable: cells are kept in runs/surface-returns. Writes benchmarks/results/surface-returns-LIVES.json. Half an hour on two idle
cores.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.record import ROOT, provenance
from benchmarks.returns import rows
from benchmarks.surface import FAMILIES, MINATAR
from discover.agents.objectives import identity, resolve_objective
from discover.evaluation.evaluate import evaluate
from discover.results import statistics
from discover.results.comparison import Comparison
from discover.runs.store import write_text

GROUPS: dict[str, tuple[dict[str, tuple[int, ...]], int, int]] = {  # lengths by environment, seeds, first seed
    "games of the surface": (dict.fromkeys(MINATAR, (262_144, 1_048_576)), 8, 4343),
    "held out": ({"Freeway-MinAtar": (327_680, 1_048_576), "CartPole-v1": (131_072,)}, 10, 55_000),
    "horizons": (dict.fromkeys(MINATAR, (131_072, 1_048_576)), 8, 4343),
}
PAIRS = (
    *((name, "ppo") for name in FAMILIES),
    ("short_ta_tuned_ppo", "long_ta_tuned_ppo"),
    ("ta_tuned_ppo", "tuned_ppo"),
    ("ta_clip", "clip"),
    ("ta_clip", "tuned_ppo"),
    ("ta_clip", "ta_tuned_ppo"),
    ("ta_statistics_tuned_ppo", "ta_tuned_ppo"),
    ("ta_statistics_tuned_ppo", "statistics_tuned_ppo"),
    ("statistics_tuned_ppo", "tuned_ppo"),
)


def better(comparison: Comparison, ours: str, theirs: str) -> dict[str, statistics.Interval]:
    """P(a seed of ours returns more than one of theirs): by length of life, and over all trials."""
    lengths = sorted({trial.total_steps for trial in comparison.curves})
    found = {}
    for name, kept in [(f"{n:,} steps", (n,)) for n in lengths] + [("all", tuple(lengths))]:
        cells = [c for trial, c in comparison.curves.items() if trial.total_steps in kept]
        pair = (np.stack([c[which].final for c in cells]) for which in (ours, theirs))
        found[name] = statistics.interval(statistics.probability_of_improvement, *pair)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lives", default="1", help="the set of lives that the objectives were read off: 1, 2 or 1+2")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    args = parser.parse_args(argv)
    place = ROOT / f"benchmarks/searches/surface-{args.lives}"
    paths = {name: place / f"{name}.safetensors" for name in args.families}
    files = {name: str(path) for name, path in paths.items() if path.exists()}
    if not files:
        parser.error(f"{place} has no objectives: run `python -m benchmarks.surface` first.")
    known = {"ppo", *files}
    out = ROOT / f"benchmarks/results/surface-returns-{args.lives}.json"
    report: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"groups": {}}
    report |= provenance() | {"lives": args.lives}
    for group in args.groups:
        lengths, seeds, seed = GROUPS[group]
        found = [
            evaluate(
                {"ppo": "ppo"} | files,
                [env],
                total_steps=steps,
                num_seeds=seeds,
                seed=seed,
                num_evals=20,
                out=ROOT / f"runs/surface-returns/{args.lives}" / group.replace(" ", "-") / env,
                progress=lambda line: print(line, flush=True),
            )
            for env, steps in lengths.items()
        ]
        comparison = Comparison({t: c for each in found for t, c in each.curves.items()}, {})
        pairs = {f"{a} over {b}": better(comparison, a, b) for a, b in PAIRS if {a, b} <= known}
        report["groups"][group] = {
            "seeds": seeds,
            "seed": seed,
            "objectives": {name: identity(resolve_objective(path)) for name, path in files.items()},
            "better": pairs,
            "rows": rows(comparison, "ppo"),
        }
        write_text(out, json.dumps(report, indent=1, default=lambda x: x._asdict()) + "\n")
        for pair, parts in pairs.items():
            print(f"{group}: {pair} " + ", ".join(f"{part} {p:.2f}" for part, p in parts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
