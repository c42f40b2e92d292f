"""Figures of drifts: what is held back, and what is left to climb."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from discover.plots.style import LIFETIME, plain
from learned_objectives import Drift, Progress, Statistics

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
    figure = Figure(figsize=(8.4, 1.5 + 2.7 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 2, squeeze=False, sharex=True, sharey=True)
    surfaces = [_landscape(drift, fraction) for _, drift, fraction in rows]
    high = max(1e-3, *(float(np.percentile(value, 98)) for *_, value, _ in surfaces))  # one scale for all rows
    for (label, *_), (log_ratio, advantage, value, slope), (left, right) in zip(rows, surfaces, axes, strict=True):
        drawn = left.pcolormesh(log_ratio, advantage, value, cmap="viridis", vmin=0, vmax=high, rasterized=True)
        shaded = right.pcolormesh(log_ratio, advantage, slope, cmap="RdBu", vmin=-1, vmax=3, rasterized=True)
        if slope.min() < TURNS_BACK < slope.max():
            calm = np.ma.masked_where(np.abs(advantage) < 0.1, slope)  # divided by less, the slope is noise
            levels = [TURNS_BACK]
            right.contour(log_ratio, advantage, calm, levels=levels, colors="black", linewidths=0.8, linestyles="solid")
        left.set_title(f"{plain(label)}: drift")
        right.set_title(f"{plain(label)}: slope")
        left.set_ylabel("advantage A (standardised)")
    figure.colorbar(drawn, ax=axes[:, 0], location="bottom", aspect=30, label="drift D", extend="max")
    label = "slope of rA − D, over A (black line: turns back)"
    figure.colorbar(shaded, ax=axes[:, 1], location="bottom", aspect=30, label=label, extend="both")
    for axis in axes[-1]:
        axis.set_xlabel("log ratio log r")
    return figure


def _landscape(drift: Drift, fraction: float):
    log_ratio, advantage = np.meshgrid(np.linspace(-1.0, 1.0, 161), np.linspace(-3.0, 3.0, 122))
    progress = Progress(jnp.float32(fraction * LIFETIME), jnp.float32(LIFETIME), Statistics.typical())
    x, a = jnp.asarray(log_ratio, jnp.float32), jnp.asarray(advantage, jnp.float32)
    value = drift(x, a, progress)
    slope = jax.grad(lambda x: drift.surrogate(x, a, progress).sum())(x) / jnp.exp(x)  # d/dr, not d/dlog r
    return log_ratio, advantage, np.asarray(value), np.asarray(slope / a)
