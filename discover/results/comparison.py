"""What an evaluation found: curves by trial and objective, statistics over them, and a table to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from discover.names import unknown
from discover.results import references, statistics
from discover.results.statistics import Interval, iqm_interval


class Trial(NamedTuple):
    """What objectives are compared on."""

    env: str
    total_steps: int  # environment steps of each agent, as asked for

    def __str__(self) -> str:
        return f"{self.env}, {self.total_steps:,} steps"


class Curve(NamedTuple):
    """How agents learned in a trial. `S` seeds, `E` evaluations."""

    returns: np.ndarray  # f32[S, E], see TrainResult
    env_steps: np.ndarray  # i64[E]

    @property
    def final(self) -> np.ndarray:
        """f32[S]: each seed's mean return over the last stretch of its life."""
        return self.returns[:, -1]


class Comparison(NamedTuple):
    """Curves by trial and objective, in the order they were asked for."""

    curves: dict[Trial, dict[str, Curve]]
    misfits: dict[tuple[str, str], str]  # (objective, environment) -> why that objective cannot train there

    @property
    def objectives(self) -> list[str]:
        return list(dict.fromkeys(name for curves in self.curves.values() for name in curves))

    def common(self) -> list[Trial]:
        """Trials that every objective took part in and whose environment has references: what scores are made of."""
        everyone = set(self.objectives)
        return [t for t, curves in self.curves.items() if set(curves) == everyone and references.of(t.env)]

    def scores(self, objective: str) -> np.ndarray:
        """f64[trials, S]: final returns in the common trials, 0 what a random policy gets and 1 what PPO does."""
        return np.stack([references.normalise(t.env, self.curves[t][objective].final) for t in self.common()])

    def summary(self, baseline: str | None = None) -> dict[str, dict[str, Interval]]:
        """Statistics of the scores by objective: IQM, median, optimality gap, and the probability of improvement over
        `baseline` (default: "ppo", if it is among them). Empty where there is nothing in common."""
        if baseline is not None and baseline not in self.objectives:
            raise unknown("baseline", baseline, self.objectives)
        if not self.common():
            return {}
        if baseline is None and "ppo" in self.objectives:
            baseline = "ppo"
        scores = {name: self.scores(name) for name in self.objectives}
        out: dict[str, dict[str, Interval]] = {}
        for name, mine in scores.items():
            out[name] = {
                "IQM": iqm_interval(mine),
                "median": statistics.interval(statistics.median, mine),
                "optimality gap": statistics.interval(statistics.optimality_gap, mine),
            }
            if baseline is not None and name != baseline:
                out[name][f"P(better than {baseline})"] = statistics.interval(
                    statistics.probability_of_improvement, mine, scores[baseline]
                )
        return out

    def table(self) -> str:
        """IQM of the final returns over seeds, with its 95% interval; statistics of the scores over all trials; `notes`; and what
        did not fit."""
        several = len({t.total_steps for t in self.curves}) > 1
        rows = [["environment", *self.objectives]]
        for trial, curves in self.curves.items():
            found = {name: iqm_interval(curve.final) for name, curve in curves.items()}
            digits = ".1f" if max(abs(x) for i in found.values() for x in i) >= 10 else ".2f"
            cells = (f"{found[name]:{digits}}" if name in found else "-" for name in self.objectives)
            rows.append([str(trial) if several else trial.env, *cells])
        parts = [_aligned(rows)]
        if summary := self.summary():
            names = list(dict.fromkeys(name for each in summary.values() for name in each))
            rows = [[f"score, {count_of(len(self.common()), 'trial')}", *names]]
            for objective, each in summary.items():
                rows.append([objective, *(f"{each[n]:.2f}" if n in each else "-" for n in names)])
            parts.append(_aligned(rows))
        parts += self.notes()
        parts += [f"{name} in {env}: {why}" for (name, env), why in self.misfits.items()]
        return "\n\n".join(parts)

    def notes(self) -> list[str]:
        """A sentence for each reason to read the statistics with care: few seeds, and references of another budget."""
        seeds = [len(curve.final) for curves in self.curves.values() for curve in curves.values()]
        notes = [note] if seeds and (note := statistics.few_seeds_note(min(seeds))) else []
        for trial in self.common():
            budget = (references.of(trial.env) or {})["total_steps"]
            if budget != trial.total_steps:
                notes.append(
                    f"Scores in {trial.env} at {trial.total_steps:,} steps: the reference, a score of 1, is PPO at {budget:,} "
                    "steps. Compare objectives with one another, not with 1."
                )
        return notes

    def statistics(self) -> dict[str, Any]:
        """For evaluation.json: the IQM of every cell, the summary, and the references by which its scores were made."""
        return {
            "iqm": [
                {
                    "env": trial.env,
                    "total_steps": trial.total_steps,
                    "objective": name,
                    "iqm": finite(iqm_interval(c.final)),
                }
                for trial, curves in self.curves.items()
                for name, c in curves.items()
            ],
            "scored": [list(t) for t in self.common()],
            "summary": {name: {k: finite(v) for k, v in each.items()} for name, each in self.summary().items()},
            "references": {t.env: references.of(t.env) for t in self.common()},
            "notes": self.notes(),
        }


def finite(interval: Interval) -> list[float | None]:
    """For JSON, which has no infinity: the worst there is, of agents without a return, becomes null."""
    return [x if np.isfinite(x) else None for x in interval]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def count_of(count: int, thing: str) -> str:
    return f"{count} {thing}" + ("" if count == 1 else "s")
