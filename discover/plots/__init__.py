"""Figures: what a drift does to a ratio, how a search went, how agents learned. Each function returns a Figure."""

from discover.plots.curves import budgets, intervals, learning_curves, search_curve
from discover.plots.drifts import drift_landscape
from discover.plots.elites import elites
from discover.plots.fronts import size_and_error
from discover.plots.lineage import descent
from discover.plots.rules import credit, targets
from discover.plots.runs import draw_run, look_inside
from discover.plots.schedules import schedules
from discover.plots.style import BAND, COLOURS, band, legend
from discover.plots.worlds import favourites, level_animation, level_picture

__all__ = [
    "BAND",
    "COLOURS",
    "band",
    "budgets",
    "credit",
    "descent",
    "draw_run",
    "drift_landscape",
    "elites",
    "favourites",
    "intervals",
    "learning_curves",
    "legend",
    "level_animation",
    "level_picture",
    "look_inside",
    "schedules",
    "search_curve",
    "size_and_error",
    "targets",
]
