"""Figures: what a drift does to a ratio, how a search went, how agents learned. Each function returns a Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from discover.statistics import Interval, iqm_interval
from discover.store import read_rows
from discover.train import TrainResult, resolve_objective
from envs.gridworld import GridState, GridWorld, Level
from learned_objectives import DPO, LPG, Clip, Drift, Mirror, Objective, Progress, Rollout

if TYPE_CHECKING:
    from discover.comparison import Comparison, Curve, Trial

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#999999",
)  # Okabe and Ito
LIFETIME = 1e6
TURNS_BACK = -0.02  # a slope below zero by more than rounding


def drift_landscape(drifts: Mapping[str, Drift], *, fractions: Sequence[float] = (0.5,)) -> Figure:
    """For each drift, and each n/N where it depends on it: D, and the slope of r A - D that an agent climbs.

    The slope is divided by A. Where nothing holds the agent back it is 1; where it is 0 the gain is cut off; where it is
    negative the agent is pushed back to the old policy.
    """
    rows = [
        (f"{name}, n/N = {fraction:g}" if drift.needs_progress else name, drift, fraction)
        for name, drift in drifts.items()
        for fraction in (fractions if drift.needs_progress else fractions[:1])
    ]
    figure = Figure(figsize=(8.4, 0.6 + 2.7 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 2, squeeze=False, sharex=True, sharey=True)
    for (label, drift, fraction), (left, right) in zip(rows, axes, strict=True):
        log_ratio, advantage, value, slope = _landscape(drift, fraction)
        high = max(float(np.percentile(value, 98)), 1e-3)
        drawn = left.pcolormesh(log_ratio, advantage, value, cmap="viridis", vmin=0, vmax=high, rasterized=True)
        figure.colorbar(drawn, ax=left, label="drift D", extend="max")
        drawn = right.pcolormesh(log_ratio, advantage, slope, cmap="RdBu", vmin=-1, vmax=3, rasterized=True)
        figure.colorbar(drawn, ax=right, label="slope of rA − D, over A", extend="both")
        if slope.min() < TURNS_BACK < slope.max():
            calm = np.ma.masked_where(np.abs(advantage) < 0.1, slope)  # divided by less, the slope is noise
            levels = [TURNS_BACK]
            right.contour(log_ratio, advantage, calm, levels=levels, colors="black", linewidths=0.8, linestyles="solid")
        left.set_title(f"{label}: drift")
        right.set_title(f"{label}: slope (black: turns back)")
        left.set_ylabel("advantage A (standardised)")
    for axis in axes[-1]:
        axis.set_xlabel("log ratio log r")
    return figure


def _landscape(drift: Drift, fraction: float):
    log_ratio, advantage = np.meshgrid(np.linspace(-1.0, 1.0, 161), np.linspace(-3.0, 3.0, 122))
    progress = Progress(jnp.float32(fraction * LIFETIME), jnp.float32(LIFETIME))
    x, a = jnp.asarray(log_ratio, jnp.float32), jnp.asarray(advantage, jnp.float32)
    value = drift(x, a, progress)
    slope = jax.grad(lambda x: drift.surrogate(x, a, progress).sum())(x) / jnp.exp(x)  # d/dr, not d/dlog r
    return log_ratio, advantage, np.asarray(value), np.asarray(slope / a)


def learning_curves(results: Mapping[str, TrainResult | Curve], *, title: str = "") -> Figure:
    """Mean return over seeds with a band of one standard error, against environment steps."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axis = figure.subplots()
    for colour, (label, result) in zip(_cycle(len(results)), results.items(), strict=True):
        _band(axis, result.env_steps, result.returns, colour, label)
    axis.set(xlabel="environment steps", ylabel="return of finished episodes", title=title)
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)
    return figure


def intervals(summary: Mapping[str, Mapping[str, Interval]], *, title: str = "") -> Figure:
    """For each statistic of `Comparison.summary`, a row for each objective: the value, and its 95% bootstrap interval."""
    names = list(dict.fromkeys(name for each in summary.values() for name in each))
    figure = Figure(figsize=(1.2 + 2.3 * len(names), 0.9 + 0.32 * len(summary)), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    rows = {objective: len(summary) - 1 - i for i, objective in enumerate(summary)}
    for axis, name in zip(axes, names, strict=True):
        for colour, (objective, each) in zip(_cycle(len(summary)), summary.items(), strict=True):
            if name in each and np.isfinite(each[name]).all():  # agents without a return have no place on an axis
                value, low, high = each[name]
                axis.barh(rows[objective], high - low, left=low, height=0.6, color=colour, alpha=0.4)
                axis.plot([value, value], [rows[objective] - 0.3, rows[objective] + 0.3], color=colour, linewidth=2)
        if name.startswith("P("):
            axis.axvline(0.5, color="0.5", linewidth=0.8, linestyle="--")
        axis.set_title(name + (" (lower is better)" if "gap" in name else ""), fontsize=9)
        axis.grid(axis="x", alpha=0.25)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes[0].set_yticks(list(rows.values()), list(rows))
    figure.supxlabel("score: 0 a random policy, 1 PPO", fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


def budgets(comparison: Comparison) -> Figure:
    """What each objective comes to in lives of different length: IQM of the final return and its 95% interval."""
    by_env: dict[str, list[Trial]] = {}
    for trial in sorted(comparison.curves, key=lambda t: t.total_steps):
        by_env.setdefault(trial.env, []).append(trial)
    figure = Figure(figsize=(6.4, 0.4 + 3.2 * len(by_env)), layout="constrained")
    for axis, (env, trials) in zip(figure.subplots(len(by_env), 1, squeeze=False)[:, 0], by_env.items(), strict=True):
        for colour, name in zip(_cycle(len(comparison.objectives)), comparison.objectives, strict=True):
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
                axis.plot(x, value, color=colour, marker="o", label=name)
                axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.set_xlim(0.9 * trials[0].total_steps, 1.1 * trials[-1].total_steps)
        axis.set(xscale="log", xlabel="environment steps in a life", ylabel="final return (IQM)", title=env)
        axis.legend(frameon=False)
        axis.grid(alpha=0.25)
    return figure


def search_curve(rows: Sequence[Mapping[str, Any]], *, title: str = "") -> Figure:
    """How a run's fitness moved: the mean of the search over its evaluation lives, and the population around it."""
    names = list(next(row["evaluation"] for row in rows if "evaluation" in row))
    figure = Figure(figsize=(6.4, 0.4 + 3.2 * len(names)), layout="constrained")
    for axis, name in zip(figure.subplots(len(names), 1, squeeze=False)[:, 0], names, strict=True):
        population = [(row["generation"], row["fitness"][name]["mean"]) for row in rows if "fitness" in row]
        evaluated = [(row["generation"], row["evaluation"][name]) for row in rows if "evaluation" in row]
        if population:
            x, y = zip(*((g, np.nan if m is None else m) for g, m in population), strict=True)
            axis.plot(x, y, color=COLOURS[5], linewidth=1, label="population, one life each")
        x = np.asarray([generation for generation, _ in evaluated])
        returns = np.asarray([values for _, values in evaluated], float)
        _band(axis, x, returns.T, COLOURS[0], f"mean of the search, {returns.shape[1]} lives")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set(
            xlabel="generation",
            ylabel="return at the end of a life",
            title=f"{title} {name}".strip(),
        )
        axis.legend(frameon=False)
        axis.grid(alpha=0.25)
    return figure


def draw_run(run: Path, out: Path) -> list[Path]:
    """Figures of a run, written into `out`: its search, and a look into what it found. Returns their paths."""
    rows = read_rows(run / "metrics.jsonl")
    if not any("evaluation" in row for row in rows) or not (run / "objective.safetensors").exists():
        raise ValueError(f"{run} holds no run with an evaluated objective: give the directory of one.")
    out.mkdir(parents=True, exist_ok=True)
    figures = {"search.png": search_curve(rows)} | look_inside(resolve_objective(run))
    for name, figure in figures.items():
        figure.savefig(out / name, dpi=150)
    return [out / name for name in figures]


def look_inside(objective: Objective) -> dict[str, Figure]:
    """Figures of what an objective does, by file name."""
    if isinstance(objective, Mirror):
        drifts = {"PPO": Clip(), "DPO": DPO(), "discovered": objective.drift}
        return {"drift.png": drift_landscape(drifts, fractions=(0.0, 0.5, 1.0))}
    if isinstance(objective, LPG):
        return {"credit.png": credit(objective)}
    return {}


def credit(lpg: LPG, *, steps: int = 20, fractions: Sequence[float] = (0.0, 0.5, 1.0)) -> Figure:
    """How an LPG hands a reward of 1 back to the steps before it: the change of its two targets that the reward makes, by
    steps before it; for each n/N where it depends on it. The agent here is at a loss: uniform actions and predictions."""
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    before = np.arange(steps)[::-1]
    for colour, fraction in zip(COLOURS, fractions if lpg.time_aware else (0.5,), strict=False):
        progress = Progress(jnp.float32(fraction * LIFETIME), jnp.float32(LIFETIME))
        with_it, without = (lpg.targets(_one_reward(lpg, steps, reward), progress) for reward in (1.0, 0.0))
        label = f"n/N = {fraction:g}" if lpg.time_aware else None
        axes[0].plot(before, (with_it.policy - without.policy)[:, 0], color=colour, label=label, marker=".")
        moved = jnp.abs(jnp.exp(with_it.prediction) - jnp.exp(without.prediction)).sum(-1)[:, 0]
        axes[1].plot(before, moved, color=colour, label=label, marker=".")
    axes[0].axhline(0.0, color="0.6", linewidth=0.8)
    axes[0].set(xlabel="steps before the reward", ylabel="change of the policy target")
    axes[1].set(xlabel="steps before the reward", ylabel="change of the prediction target (L1)")
    for axis in axes:
        axis.grid(alpha=0.25)
        if lpg.time_aware:
            axis.legend(frameon=False)
    return figure


def _one_reward(lpg: LPG, steps: int, reward: float) -> Rollout:
    zeros, no = jnp.zeros((steps, 1)), jnp.zeros((steps, 1), bool)
    critic = jnp.zeros((steps, 1, lpg.predictions))
    chance = jnp.full((steps, 1), -np.log(5.0), jnp.float32)  # of one action among five
    return Rollout(zeros, zeros, chance, critic, critic, zeros.at[-1].set(reward), no, no)


def level_picture(env: GridWorld, level: Level, states: GridState | None = None, *, title: str = "") -> Figure:
    """A grid world; with the states [T] of an episode, the way the agent went as well.

    An object's colour and number are its reward; a ring shows where the agent starts, or is at last.
    """
    figure = Figure(figsize=(0.4 + 0.42 * env.width, 0.7 + 0.42 * env.height), layout="constrained")
    axis = figure.subplots()
    present = np.asarray(level.used)
    cells, position = np.asarray(level.cell), int(level.start)
    if states is not None:
        positions = np.asarray(states.position)
        rows, columns = positions // env.width, positions % env.width
        axis.plot(columns, rows, color=COLOURS[0], alpha=0.5, linewidth=1.5, zorder=2)
        present, cells, position = np.asarray(states.present)[-1], np.asarray(states.cell)[-1], int(positions[-1])
    _draw_level(axis, env, level)
    for artist in _draw_things(axis, env, level, present, cells, position):
        axis.add_artist(artist)
    axis.set_title(title, fontsize=9)
    return figure


def level_animation(env: GridWorld, level: Level, states: GridState, *, interval: int = 120) -> FuncAnimation:
    """An episode, states [T], as it goes: `HTML(level_animation(...).to_jshtml())` shows it in a notebook. `interval` in ms."""
    figure = Figure(figsize=(0.4 + 0.42 * env.width, 0.4 + 0.42 * env.height), layout="constrained")
    axis = figure.subplots()
    _draw_level(axis, env, level)
    present, cells, positions = (np.asarray(x) for x in (states.present, states.cell, states.position))
    shown: list[Any] = []

    def frame(t: int):
        for artist in shown:
            artist.remove()
        shown[:] = _draw_things(axis, env, level, present[t], cells[t], int(positions[t]))
        for artist in shown:
            axis.add_artist(artist)
        return shown

    return FuncAnimation(figure, frame, frames=len(positions), interval=interval)


def _draw_level(axis: Axes, env: GridWorld, level: Level) -> None:
    wall = np.flatnonzero(np.asarray(level.wall))
    blocks = [Rectangle((w % env.width - 0.5, w // env.width - 0.5), 1, 1) for w in wall]
    axis.add_collection(PatchCollection(blocks, facecolor="0.25", edgecolor="none"))
    axis.set(xlim=(-0.5, env.width - 0.5), ylim=(env.height - 0.5, -0.5), xticks=[], yticks=[], aspect="equal")
    axis.set_xticks(np.arange(env.width) - 0.5, minor=True)
    axis.set_yticks(np.arange(env.height) - 0.5, minor=True)
    axis.grid(which="minor", color="0.85", linewidth=0.5)
    axis.tick_params(which="minor", length=0)


def _draw_things(axis: Axes, env: GridWorld, level: Level, present, cells, position: int) -> list[Any]:
    """Objects and agent, as artists that are in no axes yet."""
    from matplotlib.patches import Circle
    from matplotlib.text import Text

    things: list[Any] = []
    for there, cell, reward in zip(present, cells, np.asarray(level.reward), strict=True):
        if there:
            at = (cell % env.width, cell // env.width)
            things.append(Circle(at, 0.36, facecolor=COLOURS[2] if reward > 0 else COLOURS[1], zorder=3))
            things.append(Text(*at, f"{reward:.1f}", ha="center", va="center", fontsize=7, color="white", zorder=4))
    at = (position % env.width, position // env.width)
    things.append(Circle(at, 0.44, facecolor="none", edgecolor=COLOURS[0], linewidth=2.5, zorder=5))
    return things


def _band(axis: Axes, x, values: np.ndarray, colour: str, label: str) -> None:
    """Mean of [S, E] over S, and one standard error either side."""
    seen = np.ma.masked_invalid(values)  # no return is known before an episode has ended
    mean = seen.mean(axis=0).filled(np.nan)
    error = (seen.std(axis=0) / np.sqrt(np.maximum(seen.count(axis=0), 1))).filled(np.nan)
    axis.plot(x, mean, color=colour, linewidth=1.8, label=label)
    axis.fill_between(x, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
