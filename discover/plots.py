"""Figures: what a drift does to a ratio, how a search went, how agents learned. Each function returns a Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from discover.train import TrainResult
from learned_objectives import Drift, Progress

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


def learning_curves(results: Mapping[str, TrainResult], *, title: str = "") -> Figure:
    """Mean return over seeds with a band of one standard error, against environment steps."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axis = figure.subplots()
    for colour, (label, result) in zip(_cycle(len(results)), results.items(), strict=True):
        _band(axis, result.env_steps, result.returns, colour, label)
    axis.set(xlabel="environment steps", ylabel="return of finished episodes", title=title)
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


def _band(axis: Axes, x, values: np.ndarray, colour: str, label: str) -> None:
    """Mean of [S, E] over S, and one standard error either side."""
    seen = np.ma.masked_invalid(values)  # no return is known before an episode has ended
    mean = seen.mean(axis=0).filled(np.nan)
    error = (seen.std(axis=0) / np.sqrt(np.maximum(seen.count(axis=0), 1))).filled(np.nan)
    axis.plot(x, mean, color=colour, linewidth=1.8, label=label)
    axis.fill_between(x, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
