"""Which search a recipe asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import learned_objectives as lo
from discover.evolution_search import EvolutionSearch
from discover.gradient_search import GradientSearch
from discover.recipe import Recipe
from discover.rolling_search import RollingSearch
from discover.search import Search

SEARCHES: dict[str, type[Search]] = {
    "evolution": EvolutionSearch,
    "rolling": RollingSearch,
    "metagrad": GradientSearch,
}
START = "start.safetensors"  # in a run's directory, if its recipe starts from what another found


def search_for(recipe: Recipe, out: Path | None = None, devices: Sequence[Any] | None = None) -> Search:
    """The search of a recipe, on these devices (default: all).

    A recipe may start from what another search found. Its run, in `out`, keeps a copy of that and starts from the copy, because
    the original may change or be removed.
    """
    kind = SEARCHES["rolling" if recipe.rolls else recipe.method]
    if out is not None and recipe.starts_elsewhere and (out / START).exists():
        return kind(recipe, lo.load(out / START), devices)
    return kind(recipe, devices=devices)
