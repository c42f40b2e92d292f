"""Figures of the weights around a drift."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from discover.plots.style import cycle, legend, plain
from learned_objectives import Progress, ScheduledMirror, Statistics

LABELS = {
    "entropy_coef": "entropy weight",
    "value_coef": "value weight",
    "gae_lambda": "lambda",
    "value_clip": "value clip",
}


def schedules(objective: ScheduledMirror, *, lifetimes: Sequence[float] = (65_536, 262_144, 1_048_576)) -> Figure:
    """Each weight around the drift against n/N, a line for each lifetime N in environment steps. Dashed: the start, PPO's."""
    before = objective.replace(numbers=0.0 * objective.numbers)
    fractions = np.linspace(0.0, 1.0, 41)
    names = list(objective.table(_moment(0.0, lifetimes[0])))
    figure = Figure(figsize=(2.9 * len(names) + 1.6, 2.8), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for colour, lifetime in zip(cycle(len(lifetimes)), lifetimes, strict=True):
        tables = [objective.table(_moment(fraction, lifetime)) for fraction in fractions]
        for axis, name in zip(axes, names, strict=True):
            axis.plot(fractions, [table[name] for table in tables], color=colour, label=plain(f"N = {lifetime:,}"))
    for axis, (name, value) in zip(axes, before.table(_moment(0.0, lifetimes[0])).items(), strict=True):
        axis.axhline(value, color="0.5", linewidth=0.8, linestyle="--")
        axis.set(xlabel="n/N", title=LABELS[name])
        axis.grid(alpha=0.25)
    legend(axes[-1], "lifetime, environment steps")
    return figure


def _moment(fraction: float, lifetime: float) -> Progress:
    return Progress(np.float32(fraction * lifetime), np.float32(lifetime), Statistics.typical())
