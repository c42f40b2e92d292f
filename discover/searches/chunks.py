"""The chunk of a recipe: how many items of its search a device trains side by side."""

from __future__ import annotations

import dataclasses

from discover.searches.recipe import Recipe


def with_chunk(recipe: Recipe, chunk: int | str | None) -> Recipe:
    """The recipe with another chunk: items of its search; "auto"; or None: all of a device's share."""
    return dataclasses.replace(recipe, search=dataclasses.replace(recipe.search, chunk=chunk))


def lengths_differ(recipe: Recipe) -> bool:
    """Whether the whole lives of a generation have lengths of their own."""
    return recipe.search.whole_lives and (recipe.total_steps is None or recipe.longest_steps is not None)
