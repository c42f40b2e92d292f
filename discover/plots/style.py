"""What all figures share."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

LIFETIME = 1e6  # environment steps, of agents that are asked about n/N

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


BAND = "line: mean\nband: ± 1 standard error"  # what `band` draws


def band(axis: Axes, x, values: np.ndarray, colour: str, label: str) -> None:
    """Draw the mean of `values` f[S, E] over S against `x` [E], and one standard error on either side; NaN is left out."""
    seen = np.ma.masked_invalid(values)  # no return is known before an episode has ended
    mean = seen.mean(axis=0).filled(np.nan)
    error = (seen.std(axis=0) / np.sqrt(np.maximum(seen.count(axis=0), 1))).filled(np.nan)
    axis.plot(x, mean, color=colour, linewidth=1.8, label=plain(label))
    axis.fill_between(x, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)


def legend(axis: Axes, title: str = "") -> None:
    """A legend beside the axes, so that it covers no line."""
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), title=title, title_fontsize=8, fontsize=9)


def cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def plain(name: str) -> str:
    """A name as it is written, where matplotlib would read what is between two dollars as mathematics."""
    return name.replace("$", r"\$")
