"""What objectives read off a response surface return: `python -m benchmarks.surface_returns`, after `benchmarks.surface`.

Families that were read off a set of lives (or off several, `--lives 1+2`), beside PPO: in three games and at two lengths of the
lives, with seeds that no cell had; and on Freeway and CartPole, which no lives contain, with the seeds of the validation in
benchmarks/protocol.toml. The group `horizons` is for objectives that were read off short or long lives alone. For pairs of
objectives it reports the probability that a seed of the first returns more than one of the second, by length and over all, with
stratified bootstrap intervals (of one trial, Newcombe's score interval). What other runs of this command reported of other
objectives stays in the report.

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
from benchmarks.returns import by_length, rows
from benchmarks.surface import FAMILIES, MINATAR
from discover.agents.objectives import identity, resolve_objective
from discover.evaluation.evaluate import evaluate
from discover.results.comparison import Comparison, Curve, Trial
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


def recorded(group: dict[str, Any], left_out: set[str]) -> dict[Trial, dict[str, Curve]]:
    """The rows of a group as curves, but for some objectives."""
    curves: dict[Trial, dict[str, Curve]] = {}
    for row in group.get("rows", ()):
        trial, final = Trial(row["env"], row["total_steps"]), np.float32(row["final_returns"])
        if row["objective"] not in left_out:
            curves.setdefault(trial, {})[row["objective"]] = Curve(final[:, None], np.int64([trial.total_steps]))
    return curves


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
    report |= {"lives": args.lives}
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
        before = report["groups"].get(group, {})
        kept = recorded(before, known)
        curves = {t: kept.get(t, {}) | c for each in found for t, c in each.curves.items()}
        comparison = Comparison(curves, {})
        names = set(comparison.objectives)
        pairs = {f"{a} over {b}": by_length(comparison, a, b) for a, b in PAIRS if {a, b} <= names}
        report["groups"][group] = provenance() | {
            "seeds": seeds,
            "seed": seed,
            "objectives": before.get("objectives", {})
            | {name: identity(resolve_objective(path)) for name, path in files.items()},
            "better": pairs,
            "rows": rows(comparison, "ppo"),
        }
        write_text(out, json.dumps(report, indent=1, default=lambda x: x._asdict()) + "\n")
        for pair, parts in pairs.items():
            print(f"{group}: {pair} " + ", ".join(f"{part} {p:.2f}" for part, p in parts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
