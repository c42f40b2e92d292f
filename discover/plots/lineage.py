"""Figures of population-based training: who descends from whom, and how leaves and learning rates moved."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from discover.plots.style import plain
from discover.searches.lineage import Lineage, ancestors

COLUMNS = 4  # of panels
MAP = "viridis"


def descent(lineage: Lineage) -> Figure:
    """Lines of descent, coloured by return, for each environment; below them the learning rate and the leaves of all members.

    A line goes from each member of a step to the member of the next step that continues from it. Black: the ancestors of the last
    member with the highest score.
    """
    columns = min(COLUMNS, 1 + len(lineage.leaves))
    rows = -(-(1 + len(lineage.leaves)) // columns)
    environments = len(lineage.returns)
    figure = Figure(figsize=(2.6 * columns + 1.0, 2.6 * environments + 2.2 * rows), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[2.6 * environments, 2.2 * rows])[:, 0]
    for axis, (name, returns) in zip(
        above.subplots(environments, 1, squeeze=False)[:, 0], lineage.returns.items(), strict=True
    ):
        _draw_descent(axis, lineage, returns)
        axis.set_title(plain(name), fontsize=10)
    axes = below.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    panels = {"factor of the learning rate": lineage.rates} | lineage.leaves
    for axis, (name, values) in zip(axes, panels.items(), strict=False):
        _draw_numbers(axis, lineage, values)
        axis.set_title(plain(name), fontsize=9)
    axes[0].set_yscale("log")
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    below.supxlabel("generation", fontsize=10)
    return figure


def _draw_descent(axis: Axes, lineage: Lineage, returns: np.ndarray) -> None:
    steps, count = lineage.source.shape
    generation = 1.0 + np.arange(steps)
    line = ancestors(lineage)
    ends = [
        [(generation[g], lineage.source[g, p]), (generation[g + 1], p)] for g in range(steps - 1) for p in range(count)
    ]
    colours = returns[1:].ravel()
    scale = _scale(returns)
    drawn = LineCollection(ends, array=np.ma.masked_invalid(colours), cmap=MAP, norm=scale, linewidths=1.5)
    axis.add_collection(drawn)
    places = np.broadcast_to(np.arange(count), (steps, count))
    x = np.broadcast_to(generation[:, None], (steps, count))
    axis.scatter(x, places, c=returns, cmap=MAP, norm=scale, s=14, zorder=3)
    axis.plot(generation, line, color="black", linewidth=1.0, zorder=4)
    axis.set(xlabel="generation", ylabel="member", xlim=(0.5, steps + 0.5), ylim=(-0.7, count - 0.3))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.figure.colorbar(drawn, ax=axis, label="mean return in the step")


def _draw_numbers(axis: Axes, lineage: Lineage, values: np.ndarray) -> None:
    steps, score = len(values), lineage.score
    generation = 1.0 + np.arange(steps)
    x = np.broadcast_to(generation[:, None], values.shape)
    axis.scatter(x, values, c=score, cmap=MAP, norm=_scale(score), s=8, linewidths=0)
    axis.plot(generation, values[np.arange(steps), ancestors(lineage)], color="black", linewidth=1.0)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=8)


def _scale(values: np.ndarray) -> Normalize:
    known = values[np.isfinite(values)]
    return Normalize(*(known.min(), known.max()) if known.size else (0.0, 1.0))
