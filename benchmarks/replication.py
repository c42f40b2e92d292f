"""The trials of the group `drifts` of `benchmarks.returns` with 32 fresh seeds: `python -m benchmarks.replication DIRECTORY`.

The directory holds the results of

    discover evaluate ppo lpo ta_lpo a2c dpo mdpo --envs ENV --total-steps STEPS --num-seeds 32 --seed 777000 --out DIRECTORY/ENV

for each trial. An incomplete evaluation counts with the objectives that it has. Writes benchmarks/results/replication.json, and
what the cards of `lpo` and `ta_lpo` say of it, and prints a table. No setting was chosen on these seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.record import ROOT, provenance
from benchmarks.returns import GROUPS, better, better_over_all, card, unseen
from discover.comparison import Comparison, Curve, Trial, finite
from discover.evaluate import read_cells
from discover.statistics import iqm_interval
from discover.store import write_text
from discover.train import as_json
from learned_objectives.cards import TESTED

SEEDS, SEED = 32, 777_000
GROUP = GROUPS["drifts"]


def read(directory: Path) -> tuple[Comparison, list[dict]]:
    """What is there, in the order of the group, and what it was made with. ValueError for other seeds."""
    curves: dict[Trial, dict[str, Curve]] = {}
    made: list[dict] = []
    for file in sorted(directory.glob("*/evaluation.json")):
        settings, cells = read_cells(file)
        if (settings["num_seeds"], settings["seed"]) != (SEEDS, SEED):
            raise ValueError(
                f"{file} has {settings['num_seeds']} seeds from {settings['seed']}, not {SEEDS} from {SEED}."
            )
        for (trial, name), cell in cells.items():
            curves.setdefault(trial, {})[name] = cell.curve
            made += [cell.made_with] if cell.made_with not in made else []
    order = [Trial(env, steps) for env, budgets in GROUP.budgets.items() for steps in budgets]
    return Comparison({trial: curves[trial] for trial in order if trial in curves}, {}), made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    comparison, made = read(parser.parse_args().directory)
    rows = [
        {
            "env": trial.env,
            "total_steps": trial.total_steps,
            "objective": name,
            "iqm": finite(iqm_interval(curve.final)),
            "better than ppo": None if name == "ppo" else better(comparison, trial, name, "ppo"),
            "final_returns": as_json(curve.final.round(3)),
        }
        for trial, curves in comparison.curves.items()
        for name, curve in curves.items()
    ]
    pooled = {
        which: {name: better_over_all(part, name, "ppo") for name in ("lpo", "ta_lpo", "a2c", "dpo", "mdpo")}
        for which, part in (("all", comparison), ("never searched on", unseen(comparison, GROUP)))
    }
    report = provenance() | {
        "seeds": SEEDS,
        "seed": SEED,
        "trained_with": made,
        "rows": rows,
        "better than ppo": pooled,
    }
    tested = json.loads(TESTED.read_text())
    for name in ("lpo", "ta_lpo"):
        score = f"The same with {SEEDS} fresh seeds, on which nothing was chosen. Over environments never searched on, a seed "
        score += f"returns more than one of ppo's with probability {pooled['never searched on'][name]:.2f}"
        tested[name]["replication"] = card(comparison, name, GROUP) | {"score": score}
    write_text(TESTED, json.dumps(tested, indent=1) + "\n")
    (ROOT / "benchmarks/results/replication.json").write_text(json.dumps(report, indent=1) + "\n")
    print(
        "| environment | steps | PPO | LPO | TA-LPO | P(LPO better) | P(TA-LPO better) |\n|---|---|---|---|---|---|---|"
    )
    for trial, curves in comparison.curves.items():
        shown = {name: iqm_interval(curve.final) for name, curve in curves.items()}
        digits = ".1f" if max(abs(x) for x in shown["ppo"]) >= 10 else ".2f"
        cells = [f"{shown[name]:{digits}}" if name in shown else "-" for name in ("ppo", "lpo", "ta_lpo")]
        cells += [
            f"{better(comparison, trial, name, 'ppo'):.2f}" if name in shown else "-" for name in ("lpo", "ta_lpo")
        ]
        print("| " + " | ".join([trial.env, f"{trial.total_steps:,}", *cells]) + " |")
    for which, each in pooled.items():
        print(which, {name: f"{p:.2f}" for name, p in each.items() if p})


if __name__ == "__main__":
    main()
