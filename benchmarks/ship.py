"""Put a discovered update rule into `learned_objectives/weights`: `python -m benchmarks.ship lpg lpg_small runs/a,runs/b,runs/c`.

Of the meta-seeds of one search that `python -m benchmarks.worlds` judged, the best on the validation world is shipped: a world
that is neither one it was searched in nor one its card reports. The card's numbers are those in benchmarks/results/worlds.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import learned_objectives as lo
from benchmarks.record import ROOT
from discover import statistics
from learned_objectives.library import WEIGHTS

VALIDATION = "gridworld/medium"

SUMMARIES = {
    "lpg": (
        "A learned policy gradient, found by meta-gradient on small random grid worlds: what to predict, and what to do.",
        "Oh et al. 2020, arXiv:2007.08794",
    ),
    "groove": (
        "A learned policy gradient, found by meta-gradient on small random grid worlds, where lives are replayed in those worlds "
        "in which it falls furthest behind A2C.",
        "Jackson et al. 2023, arXiv:2310.02782",
    ),
    "ta_lpg": (
        "A time-aware learned policy gradient, found by evolution on small random grid worlds and lives of different length: it "
        "is shown how far its agent's life has come, and how long that life is.",
        "Jackson et al. 2024, arXiv:2402.05828",
    ),
}


def choose(worlds: dict[str, Any], search: str) -> int:
    """Which meta-seed is best on the validation world."""
    names = list(worlds["a2c"]["iqm_by_world"])
    scores = [statistics.iqm(np.asarray(x)[[names.index(VALIDATION)]]) for x in worlds["searches"][search]["scores"]]
    return int(np.argmax(scores))


def tested(worlds: dict[str, Any], search: str, which: int) -> list[dict[str, str]]:
    """Rows of the card: this one meta-seed on every world but the one it was chosen on."""
    found = worlds["searches"][search]
    rows = []
    for i, (world, a2c) in enumerate(worlds["a2c"]["iqm_by_world"].items()):
        if world != VALIDATION:
            mine = statistics.iqm_interval(np.asarray(found["scores"][which])[i])
            began = statistics.iqm_interval(np.asarray(found["began_scores"][which])[i])
            rows.append(
                {
                    "held-out levels of": world,
                    "this rule": f"{mine:.2f}",
                    "A2C": f"{statistics.Interval(*a2c):.2f}",
                    "before its search": f"{began:.2f}",
                }
            )
    return rows


def losses(rows: list[dict[str, str]]) -> str:
    """Where its IQM is below A2C's, in words made from the table."""
    worse = [row["held-out levels of"] for row in rows if _value(row["this rule"]) < _value(row["A2C"])]
    said = f"Behind A2C, by IQM, on {', '.join(worse)}. " if worse else "Not behind A2C, by IQM, on any world above. "
    return (
        f"{said}It was searched for minutes on one core, in worlds of at most six by six cells, for tabular agents trained by "
        "gradient descent at a rate of 40. Nothing is known of it with networks, other rates or other environments."
    )


def _value(cell: str) -> float:
    return float(cell.split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=SUMMARIES, help="to ship it under")
    parser.add_argument("search", help="its name in the results")
    parser.add_argument("runs", help="run,run,..., as the results were made with")
    parser.add_argument("--worlds", type=Path, default=ROOT / "benchmarks/results/worlds.json")
    args = parser.parse_args()
    worlds = json.loads(args.worlds.read_text())
    which = choose(worlds, args.search)
    runs = args.runs.split(",")
    source = Path(runs[which]) / "objective.safetensors"
    how = lo.record(source)
    if how != worlds["searches"][args.search]["records"][which]:
        raise SystemExit(f"{source} is not what {args.worlds} judged: name the runs in the same order.")
    objective, rows = lo.load(source), tested(worlds, args.search, which)
    card = {
        "summary": SUMMARIES[args.name][0],
        "reference": SUMMARIES[args.name][1],
        "chosen": f"the best of {len(runs)} meta-seeds on 16 held-out levels of {VALIDATION}; within it, the best evaluated mean",
        "score": "IQM of final returns over 16 levels and agents, in units of A2C's mean, with its 95% bootstrap interval",
        "tested": rows,
        "loses": losses(rows),
    }
    WEIGHTS.mkdir(exist_ok=True)
    lo.save(objective, WEIGHTS / f"{args.name}.safetensors", how | {"card": card, "probe": lo.probe(objective)})
    print(lo.card(args.name))


if __name__ == "__main__":
    main()
