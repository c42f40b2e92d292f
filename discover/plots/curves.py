"""Figures: learning curves of agents, final returns of objectives, and the progress of searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from discover.agents.trained import TrainResult
from discover.plots.style import BAND, COLOURS, band, cycle, legend, plain
from discover.results.statistics import Interval, iqm_interval

if TYPE_CHECKING:
    from discover.results.comparison import Comparison, Curve, Trial


def learning_curves(results: Mapping[str, TrainResult | Curve], *, title: str = "") -> Figure:
    """Mean return over seeds with a band of one standard error, against environment steps."""
    figure = Figure(figsize=(8.0, 4.0), layout="constrained")
    axis = figure.subplots()
    seeds = sorted({len(result.returns) for result in results.values()})
    for colour, (label, result) in zip(cycle(len(results)), results.items(), strict=True):
        band(axis, result.env_steps, result.returns, colour, label)
    axis.set(xlabel="environment steps", ylabel="mean return of finished episodes", title=plain(title))
    legend(axis, f"{BAND}\nover {' or '.join(map(str, seeds))} seeds")
    axis.grid(alpha=0.25)
    return figure


SCORE = "score: 0 a random policy, 1 PPO"


def intervals(summary: Mapping[str, Mapping[str, Interval]], *, title: str = "", label: str = SCORE) -> Figure:
    """For each statistic of `Comparison.summary`, a row for each objective: the value, a line, and its 95% interval, a bar."""
    names = list(dict.fromkeys(name for each in summary.values() for name in each))
    figure = Figure(figsize=(1.6 + 2.3 * len(names), 1.5 + 0.32 * len(summary)), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    rows = {objective: len(summary) - 1 - i for i, objective in enumerate(summary)}
    for axis, name in zip(axes, names, strict=True):
        for colour, (objective, each) in zip(cycle(len(summary)), summary.items(), strict=True):
            if name in each and np.isfinite(each[name]).all():  # agents without a return have no place on an axis
                value, low, high = each[name]
                axis.barh(rows[objective], high - low, left=low, height=0.6, color=colour, alpha=0.4)
                axis.plot([value, value], [rows[objective] - 0.3, rows[objective] + 0.3], color=colour, linewidth=2)
        if name.startswith("P("):
            axis.axvline(0.5, color="0.5", linewidth=0.8, linestyle="--")
        axis.set_title(plain(name) + (" (lower is better)" if "gap" in name else ""), fontsize=9)
        axis.grid(axis="x", alpha=0.25)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes[0].set_yticks(list(rows.values()), list(map(plain, rows)))
    figure.supxlabel(f"{label}\nline: estimate over seeds, bar: its 95% interval", fontsize=9)
    figure.suptitle(plain(title), fontsize=10)
    return figure


def budgets(comparison: Comparison) -> Figure:
    """The final return of each objective in lives of different length: its IQM and 95% interval."""
    by_env: dict[str, list[Trial]] = {}
    for trial in sorted(comparison.curves, key=lambda t: t.total_steps):
        by_env.setdefault(trial.env, []).append(trial)
    figure = Figure(figsize=(8.0, 0.4 + 3.2 * len(by_env)), layout="constrained")
    for axis, (env, trials) in zip(figure.subplots(len(by_env), 1, squeeze=False)[:, 0], by_env.items(), strict=True):
        for colour, name in zip(cycle(len(comparison.objectives)), comparison.objectives, strict=True):
            seen = [
                (t.total_steps, iqm_interval(comparison.curves[t][name].final))
                for t in trials
                if name in comparison.curves[t]
            ]
            if seen:
                x, y = zip(*seen, strict=True)
                value, low, high = np.where(
                    np.isfinite(y), y, np.nan
                ).T  # agents without a return have no place on an axis
                axis.plot(x, value, color=colour, marker="o", label=plain(name))
                axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        lives = [t.total_steps for t in trials]
        axis.set(xscale="log", xlim=(0.9 * lives[0], 1.1 * lives[-1]), ylabel="final return", title=plain(env))
        axis.set_xticks(lives, [f"{n:,}" for n in lives], fontsize=8)
        axis.set_xticks([], minor=True)
        axis.set_xlabel("environment steps in a life")
        legend(axis, "line: IQM over seeds\nband: its 95% interval")
        axis.grid(alpha=0.25)
    return figure


def search_curve(rows: Sequence[Mapping[str, Any]], *, title: str = "") -> Figure:
    """How a run's fitness moved: the mean of the search over its evaluation lives, and the population around it."""
    names = list(next(row["evaluation"] for row in rows if "evaluation" in row))
    figure = Figure(figsize=(8.6, 0.4 + 3.2 * len(names)), layout="constrained")
    for axis, name in zip(figure.subplots(len(names), 1, squeeze=False)[:, 0], names, strict=True):
        population = [(row["generation"], row["fitness"][name]["mean"]) for row in rows if "fitness" in row]
        evaluated = [(row["generation"], row["evaluation"][name]) for row in rows if "evaluation" in row]
        if population:
            x, y = zip(*((g, np.nan if m is None else m) for g, m in population), strict=True)
            axis.plot(x, y, color=COLOURS[5], linewidth=1, label="population: mean fitness")
        x = np.asarray([generation for generation, _ in evaluated])
        returns = np.asarray([values for _, values in evaluated], float)
        band(axis, x, returns.T, COLOURS[0], f"mean of the search, {returns.shape[1]} lives")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set(
            xlabel="generation",
            ylabel="return at the end of a life",
            title=plain(f"{title} {name}".strip()),
        )
        legend(axis, BAND)
        axis.grid(alpha=0.25)
    return figure
