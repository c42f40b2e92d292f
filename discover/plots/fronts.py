"""Figures of fronts: the size of formulas against their error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from discover.plots.style import cycle, legend, plain


def size_and_error(fronts: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> Figure:
    """For each front, its numbers of operations against errors, on a logarithmic scale. Between two formulas the error is that of
    the smaller one."""
    figure = Figure(figsize=(6.8, 3.8), layout="constrained")
    axis = figure.subplots()
    for colour, (name, (sizes, errors)) in zip(cycle(len(fronts)), fronts.items(), strict=True):
        axis.step(sizes, errors, where="post", color=colour, marker="o", markersize=4, label=plain(name))
    axis.set(xlabel="operations", ylabel="error (1: the formula 0)", yscale="log")
    axis.grid(alpha=0.25)
    legend(axis)
    return figure
