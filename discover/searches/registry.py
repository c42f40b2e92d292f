"""From a recipe to its outer loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import learned_objectives as lo
from discover.agents.objectives import as_arrays, checked, users_class
from discover.searches.outer_loop import OuterLoop
from discover.searches.problem import Problem
from discover.searches.recipe import Recipe
from envs import plugs

START = "start.safetensors"  # in a run's directory, if the recipe alone does not make its template


def search_for(recipe: Recipe, out: Path | None = None, devices: Sequence[Any] | None = None) -> OuterLoop:
    """The outer loop of a recipe, on these devices (default: all).

    A recipe may start from what another search found, or from numbers of a user's own. Its run, in `out`, keeps a copy of that
    and starts from the copy, because the original may change or be removed.
    """
    template = None
    if out is not None and recipe.objective.keeps_copy and (out / START).exists():
        template = _template_in(out / START)
    return OuterLoop(Problem(recipe, template, devices))


def start_record(template: lo.Objective) -> dict[str, Any]:
    """What a run keeps beside its template, to notice that the equation of a user's drift has changed. Empty for an objective of
    another kind."""
    try:
        return {"probe": lo.probe(template)}
    except TypeError:  # an objective of another kind
        return {}


def _template_in(path: Path) -> lo.Objective:
    """The template that a run began with. That of a user's class is checked again: its code may have changed."""
    template = as_arrays(lo.load(path))
    if (theirs := users_class(template)) is not None:
        checked(template, theirs.__name__)
        then, now = lo.record(path).get("probe"), start_record(template).get("probe")
        if then is not None and not (now is not None and np.allclose(then, now, rtol=1e-4, atol=1e-5)):
            raise ValueError(
                f"the values of {theirs.__name__} have changed since the run in {path.parent} began ({plugs.where(theirs)}): "
                "change the class back, or choose another --out."
            )
    return template
