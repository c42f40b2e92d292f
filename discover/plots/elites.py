"""Figures of MAP-Elites: the archive as a grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from discover.plots.style import plain
from discover.searches.behaviour import DESCRIPTORS
from discover.searches.map_elites import Archive, MapElitesConfig


def elites(archive: Archive, config: MapElitesConfig, *, names: Sequence[str] = ()) -> Figure:
    """The score of each elite, and its return in each environment, on the grid of the first two descriptors.

    Of further descriptors the best cell is shown. Empty cells are white. The cross is the elite with the highest score. `names`:
    of the environments. ValueError where the archive is empty.
    """
    score = np.asarray(archive.score, np.float64)
    if not np.isfinite(score).any():
        raise ValueError("the archive is empty: no generation has been trained.")
    names = [*names] or [f"environment {e}" for e in range(archive.returns.shape[1])]
    panels = {"score": score} | {
        f"return, {name}": np.asarray(archive.returns[:, e], np.float64) for e, name in enumerate(names)
    }
    figure = Figure(figsize=(4.6 * len(panels), 3.8), layout="constrained")
    best, (low, high) = _places(score, config), config.ranges
    ends = [*zip(low, high, strict=True), (0.0, 1.0)]
    extent = (*ends[0], *ends[1])
    labels = [*(DESCRIPTORS[name].label for name in config.descriptors), ""]
    for axis, (name, values) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        picture = np.where(best >= 0, values[best], np.nan)
        drawn = axis.imshow(picture.T, origin="lower", extent=extent, aspect="auto", cmap="viridis")
        i, j = np.unravel_index(int(np.nanargmax(np.where(best >= 0, score[best], np.nan))), best.shape)
        centre = [
            a + (k + 0.5) * (b - a) / n
            for k, n, a, b in zip((i, j), best.shape, extent[::2], extent[1::2], strict=True)
        ]
        axis.plot(*centre, marker="x", color="red", markersize=9)
        axis.set_title(plain(name), fontsize=10)
        axis.set_xlabel(labels[0])
        axis.set_ylabel(labels[1])
        axis.yaxis.set_visible(len(config.descriptors) > 1)
        figure.colorbar(drawn, ax=axis)
    return figure


def _places(score: np.ndarray, config: MapElitesConfig) -> np.ndarray:
    """i64[n, m]: for each cell of the first two descriptors, the number of the best elite in it; -1 where it is empty."""
    numbers = np.arange(score.size).reshape(*(*config.grid, 1)[:2], -1)
    scores = score[numbers]
    best = np.take_along_axis(numbers, scores.argmax(-1)[..., None], -1)[..., 0]
    return np.where(np.isfinite(scores).any(-1), best, -1)
