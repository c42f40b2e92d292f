"""The trials of the group `drifts` of `benchmarks.returns` with 32 seeds of their own: `python -m benchmarks.replication`.

    python -m benchmarks.replication --missing       # print the commands that train what the results file does not have
    python -m benchmarks.replication DIRECTORY ...   # add the evaluations that these commands left
    python -m benchmarks.replication --cut           # measure the share of samples that PPO's clip cuts (`benchmarks/ratios.py`)

Each form also makes the statistics again, writes benchmarks/results/replication.json, the figure, and what the cards of the
shipped drifts say of it. No setting was chosen on these seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import returns
from benchmarks.ratios import watch
from benchmarks.record import ROOT, provenance
from discover.agents.objectives import fingerprint, resolve_objective
from discover.evaluation.evaluate import read_cells
from discover.results.comparison import Comparison, Curve, Trial
from discover.runs.record import made_with
from discover.runs.store import write_text
from learned_objectives.cards import TESTED

RESULTS = ROOT / "benchmarks/results/replication.json"
SEEDS, SEED = 32, 777_000
CUT_SEEDS = 8  # of the 32, on which the share of cut samples is measured
GROUP = returns.GROUPS["drifts"]
TRIALS = tuple(Trial(env, steps) for env, budgets in GROUP.budgets.items() for steps in budgets)

Report = dict[str, Any]


def comparison_of(rows: Iterable[dict[str, Any]]) -> Comparison:
    """The rows of a report as a comparison, in the order of the group."""
    curves: dict[Trial, dict[str, Curve]] = {}
    for row in rows:
        trial = Trial(row["env"], row["total_steps"])
        final = np.asarray([np.nan if x is None else x for x in row["final_returns"]], np.float32)
        curves.setdefault(trial, {})[row["objective"]] = Curve(
            final[:, None], np.asarray([trial.total_steps], np.int64)
        )
    names = GROUP.objectives
    return Comparison(
        {t: {n: curves[t][n] for n in names if n in curves[t]} for t in TRIALS if t in curves},
        {},
    )


def added(comparison: Comparison, directories: Sequence[Path]) -> tuple[Comparison, list[dict[str, Any]]]:
    """The comparison with the evaluations in `directories` added, and what these were made with.

    ValueError for an evaluation with other seeds.
    """
    curves = {trial: dict(each) for trial, each in comparison.curves.items()}
    made: list[dict[str, Any]] = []
    for file in (path / "evaluation.json" for path in directories):
        settings, cells = read_cells(file)
        if (settings["num_seeds"], settings["seed"]) != (SEEDS, SEED):
            raise ValueError(
                f"{file} has {settings['num_seeds']} seeds from {settings['seed']}, not {SEEDS} from {SEED}."
            )
        for (trial, name), cell in cells.items():
            curves.setdefault(trial, {})[name] = cell.curve
            made += [cell.made_with] if cell.made_with not in made else []
    return comparison._replace(curves={trial: curves[trial] for trial in TRIALS if trial in curves}), made


def missing(comparison: Comparison) -> list[str]:
    """The commands that train every cell which the comparison does not have."""
    commands = []
    for trial in TRIALS:
        names = [name for name in GROUP.objectives if name not in comparison.curves.get(trial, {})]
        if names:
            out = f"runs/replication/{trial.env.replace('/', '_')}"
            commands.append(
                f"discover evaluate {' '.join(names)} --envs {trial.env} --total-steps {trial.total_steps} "
                f"--num-seeds {SEEDS} --seed {SEED} --out {out}"
            )
    return commands


def cut_share(trial: Trial) -> dict[str, Any]:
    """The share of samples that PPO's clip cuts in PPO's lives, and the largest |r - 1| of a life."""
    setup = returns.setups("drifts")[trial.env]
    objective = resolve_objective("ppo")
    lives = watch(objective, trial.env, setup, total_steps=trial.total_steps, seed=SEED, first=0, count=CUT_SEEDS)
    return {
        "env": trial.env,
        "total_steps": trial.total_steps,
        "objective": "ppo",
        "seeds": CUT_SEEDS,
        "cut": float(lives.metrics["cut"].mean()),
        "largest": float(lives.metrics["largest"].max()),
        "made_with": made_with(),
    }


def parts_of(comparison: Comparison) -> dict[str, Comparison]:
    return {"all": comparison, "never searched on": returns.unseen(comparison, GROUP)}


def report_of(comparison: Comparison, made: list[dict[str, Any]], ratios: list[dict[str, Any]]) -> Report:
    return provenance() | {
        "seeds": SEEDS,
        "seed": SEED,
        "objectives": {name: fingerprint(resolve_objective(name)) for name in comparison.objectives},
        "trained_with": made,
        "rows": returns.rows(comparison, GROUP.baseline),
        "ratios": ratios,
        f"better than {GROUP.baseline}": {
            which: {
                name: returns.better_over_all(part, name, GROUP.baseline)
                for name in part.objectives
                if name != GROUP.baseline
            }
            for which, part in parts_of(comparison).items()
        },
    }


def write_cards(comparison: Comparison, report: Report) -> None:
    """Put the result into the file from which cards are made."""
    tested = json.loads(TESTED.read_text())
    for name, probability in report["better than ppo"]["never searched on"].items():
        if name not in tested:
            continue
        score = f"The same with {SEEDS} fresh seeds, on which nothing was chosen. Over environments never searched on, a seed "
        score += f"returns more than one of ppo's with probability {probability:.2f}"
        tested[name]["replication"] = returns.card(comparison, name, GROUP) | {"score": score}
    write_text(TESTED, json.dumps(tested, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="*", type=Path, help="results of `discover evaluate`")
    parser.add_argument("--missing", action="store_true", help="print commands, and write nothing")
    parser.add_argument("--cut", action="store_true", help="measure the cut share of every trial that has none")
    args = parser.parse_args(argv)
    before: Report = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    comparison = comparison_of(before["rows"])
    if args.missing:
        print("\n".join(missing(comparison)))
        return
    comparison, made = added(comparison, args.directories)
    made = [*before.get("trained_with", ()), *(each for each in made if each not in before.get("trained_with", ()))]
    ratios = list(before.get("ratios", ()))

    def save() -> Report:
        report = report_of(comparison, made, ratios)
        write_text(RESULTS, json.dumps(report, indent=1, allow_nan=False) + "\n")
        return report

    for trial in TRIALS if args.cut else ():
        if (trial.env, trial.total_steps) not in {(row["env"], row["total_steps"]) for row in ratios}:
            ratios.append(cut_share(trial))
            print(trial, f"{ratios[-1]['cut']:.2%}", flush=True)
            save()
    write_cards(comparison, save())
    returns.draw("drifts", comparison, parts_of(comparison), RESULTS.parent, stem="replication")


if __name__ == "__main__":
    main()
