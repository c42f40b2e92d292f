"""From a recipe to its outer loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import learned_objectives as lo
from discover.searches.outer_loop import OuterLoop
from discover.searches.problem import Problem
from discover.searches.recipe import Recipe

START = "start.safetensors"  # in a run's directory, if the recipe alone does not make its template


def search_for(recipe: Recipe, out: Path | None = None, devices: Sequence[Any] | None = None) -> OuterLoop:
    """The outer loop of a recipe, on these devices (default: all).

    A recipe may start from what another search found, or from numbers of a user's own. Its run, in `out`, keeps a copy of that
    and starts from the copy, because the original may change or be removed.
    """
    template = None
    if out is not None and recipe.objective.keeps_copy and (out / START).exists():
        template = lo.load(out / START)
    return OuterLoop(Problem(recipe, template, devices))
