"""How objectives are compared, decided before any search: `python -m benchmarks.protocol validation OBJECTIVE ...`.

    python -m benchmarks.protocol validation OBJECTIVE ...   # names, files or directories of runs, to choose between
    python -m benchmarks.protocol test OBJECTIVE ...         # once for each objective that is shipped

benchmarks/protocol.toml says which trials are for training, validation and test. Trained cells are kept in runs/protocol, by the
digest of that file, and the same command resumes. The report goes to benchmarks/results/protocol-validation.json or
protocol-test.json. Objectives that it has already are read from it and not trained again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import envs
import learned_objectives as lo
from benchmarks import returns
from benchmarks.record import ROOT, provenance
from discover import plots
from discover.agents.objectives import fingerprint, resolve_objective
from discover.evaluation.evaluate import evaluate
from discover.results import statistics
from discover.results.comparison import Comparison, Curve, Trial
from discover.runs.store import write_text
from learned_objectives.cards import TESTED

FILE = ROOT / "benchmarks/protocol.toml"
SETS = ("validation", "test")


@dataclass(frozen=True)
class Protocol:
    """The trials of every purpose. `digest` names this protocol in its results."""

    seeds: int
    baseline: str
    train: tuple[str, ...]  # environments
    bounds: tuple[int, int]  # of the lengths of lives in training, environment steps
    trials: dict[str, tuple[Trial, ...]]  # by set
    seed: dict[str, int]  # of each set
    digest: str

    def __post_init__(self):
        tested = set(self.trials["test"])
        for trial in self.trials["validation"]:
            if trial in tested:
                raise ValueError(f"{trial} is a trial of the test and of the validation: take it out of one.")
        for name in SETS:
            for trial in self.trials[name]:
                if self.trains_on(trial):
                    raise ValueError(f"{trial} is a trial of the {name}, and training meets it: take it out of one.")
        if abs(self.seed["test"] - self.seed["validation"]) < self.seeds:
            raise ValueError(
                f"validation and test share seeds: {self.seeds} from {self.seed['validation']} and {self.seed['test']}."
            )

    def trains_on(self, trial: Trial) -> bool:
        shortest, longest = self.bounds
        return trial.env in self.train and shortest <= trial.total_steps <= longest


def read(path: Path = FILE) -> Protocol:
    """The protocol in a file. ValueError, in a sentence, for one that cannot be."""
    text = path.read_text()
    try:
        found = tomllib.loads(text)
        train = found["train"]
        fields: dict[str, Any] = {
            "seeds": found["seeds"],
            "baseline": found["baseline"],
            "train": tuple(train["envs"]),
            "bounds": (train["shortest"], train["longest"]),
            "trials": {name: tuple(Trial(*trial) for trial in found[name]["trials"]) for name in SETS},
            "seed": {name: found[name]["seed"] for name in SETS},
        }
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a protocol ({error!r}): see benchmarks/protocol.toml for the form.") from None
    known = set(envs.available())
    for name in (*fields["train"], *(trial.env for which in SETS for trial in fields["trials"][which])):
        if name not in known:
            raise ValueError(f"{path} names {name!r}, which is no environment: `discover list envs` shows them.")
    return Protocol(**fields, digest=hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12])


def recorded(protocol: Protocol, which: str, report: dict[str, Any]) -> Comparison:
    """The returns that a report of this protocol has of objectives whose numbers are the same now."""
    told = report.get("objectives", {}) if report.get("set") == which else {}
    same = {name for name, known in told.items() if known == fingerprint(resolve_objective(name))}
    curves: dict[Trial, dict[str, Curve]] = {trial: {} for trial in protocol.trials[which]}
    for row in report.get("rows", ()):
        trial, name = Trial(row["env"], row["total_steps"]), row["objective"]
        if name in same and trial in curves:
            final = np.asarray([np.nan if x is None else x for x in row["final_returns"]], np.float32)
            curves[trial][name] = Curve(final[:, None], np.asarray([trial.total_steps], np.int64))
    misfits = {(row["objective"], row["env"]): row["why"] for row in report.get("did not fit", ())}
    return Comparison(curves, {pair: why for pair, why in misfits.items() if pair[0] in same})


def measure(
    protocol: Protocol, which: str, objectives: Sequence[str], cells: Path, *, known: Comparison | None = None
) -> Comparison:
    """Returns of the objectives and of the baseline in every trial of a set: known ones as they are, and the others trained, or
    read from cells that are there already."""
    known = known or Comparison({}, {})
    names, misfits = tuple(dict.fromkeys((protocol.baseline, *objectives))), dict(known.misfits)
    curves: dict[Trial, dict[str, Curve]] = {}
    for trial in protocol.trials[which]:
        there = dict(known.curves.get(trial, {}))
        missing = [name for name in names if name not in there and (name, trial.env) not in misfits]
        if missing:
            found = evaluate(
                missing,
                [trial.env],
                total_steps=trial.total_steps,
                num_seeds=protocol.seeds,
                seed=protocol.seed[which],
                num_evals=20,
                out=cells / protocol.digest / which / f"{trial.env.replace('/', '_')}_{trial.total_steps}",
                progress=lambda line: print(line, flush=True),
            )
            there |= found.curves.get(trial, {})
            misfits |= found.misfits
        curves[trial] = {name: there[name] for name in names if name in there}
    return Comparison(curves, misfits)


def report_of(protocol: Protocol, which: str, comparison: Comparison, *, before: dict[str, Any]) -> dict[str, Any]:
    """What is written of a set: rows, and P(better than the baseline) over all trials and by length of life. `before`: the report
    that is extended; an objective keeps the commit at which it was measured."""
    names = [name for name in comparison.objectives if name != protocol.baseline]
    origin = provenance()
    earlier = {name: before["commit"] for name in before.get("objectives", {})} | before.get("commits", {})
    return origin | {
        "protocol": protocol.digest,
        "set": which,
        "seeds": protocol.seeds,
        "seed": protocol.seed[which],
        "objectives": {name: fingerprint(resolve_objective(name)) for name in comparison.objectives},
        "commits": {name: earlier.get(name, origin["commit"]) for name in comparison.objectives},
        f"better than {protocol.baseline}": {
            name: returns.by_length(comparison, name, protocol.baseline) for name in names
        },
        "better than one another": {
            f"{one} over {other}": returns.by_length(comparison, one, other)
            for one in names
            for other in names
            if one != other
        },
        "did not fit": [{"objective": name, "env": env, "why": why} for (name, env), why in comparison.misfits.items()],
        "rows": returns.rows(comparison, protocol.baseline),
    }


def draw(report: dict[str, Any], baseline: str, path: Path) -> None:
    """P(better than the baseline) of every objective, over all trials and over those of a length, where there are several."""
    trials = {(row["env"], row["total_steps"]) for row in report["rows"]}
    counts = Counter(f"{steps:,} steps" for _, steps in trials) | {"all": len(trials)}
    panels = {
        name: {
            f"P(better than {baseline})\n{part}, {counts[part]} trials": statistics.Interval(*better)
            for part, better in parts.items()
            if better is not None and counts[part] > 1
        }
        for name, parts in report[f"better than {baseline}"].items()
    }
    panels = {name: each for name, each in panels.items() if each}
    if panels:
        plots.intervals(panels, label="probability that a seed returns more").savefig(path, dpi=150)


def write_cards(protocol: Protocol, comparison: Comparison) -> None:
    """Put the test into the file from which the cards of shipped objectives are made."""
    tested = json.loads(TESTED.read_text()) if TESTED.exists() else {}
    about = "test set, agents as usual for each environment"
    group = returns.Group(about, tuple(comparison.objectives), protocol.baseline, {}, seen=protocol.train)
    for name in set(comparison.objectives) & set(lo.available()) - {protocol.baseline}:
        tested.setdefault(name, {})["test"] = returns.card(comparison, name, group, protocol.seeds)
    write_text(TESTED, json.dumps(tested, indent=1) + "\n")


def require_new(report: dict[str, Any], protocol: Protocol, objectives: Sequence[str]) -> None:
    """ValueError where a report is of another protocol, or tested an objective of this name with other numbers."""
    if report and report.get("protocol") != protocol.digest:
        raise ValueError(
            f"the report there is of the protocol {report.get('protocol')}, and this one is {protocol.digest}: results of two "
            "protocols are not mixed. Give another --report."
        )
    for name in objectives:
        tested = report.get("objectives", {}).get(name)
        if tested is not None and tested != fingerprint(resolve_objective(name)):
            raise ValueError(f"{name} was tested already with other numbers: the test is run once for each objective.")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("objectives", nargs="+", help="names, files or directories of runs")
    parser.add_argument("--protocol", type=Path, default=FILE)
    parser.add_argument("--cells", type=Path, default=ROOT / "runs/protocol", help="where trained cells are kept")
    parser.add_argument("--report", type=Path, help="the results file")
    args = parser.parse_args(argv)
    path = args.report or ROOT / f"benchmarks/results/protocol-{args.set}.json"
    try:
        protocol = read(args.protocol)
        before = json.loads(path.read_text()) if path.exists() else {}
        names = dict.fromkeys((*before.get("objectives", {}), *args.objectives))
        require_new(before, protocol, list(names) if args.set == "test" else ())
        known = recorded(protocol, args.set, before)
        comparison = measure(protocol, args.set, list(names), args.cells, known=known)
    except (ValueError, OSError) as error:
        print(f"benchmarks.protocol: {error}", file=sys.stderr)
        return 2
    report = report_of(protocol, args.set, comparison, before=before)
    write_text(path, json.dumps(report, indent=1, default=lambda x: x._asdict()) + "\n")
    draw(report, protocol.baseline, path.with_suffix(".png"))
    if args.set == "test" and args.report is None:
        write_cards(protocol, comparison)
    for name, parts in report[f"better than {protocol.baseline}"].items():
        print(
            f"{name}: P(better than {protocol.baseline}) " + ", ".join(f"{part} {p:.2f}" for part, p in parts.items())
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
