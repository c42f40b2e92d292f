"""The chunk of a recipe: how many lives a device trains side by side."""

from __future__ import annotations

import dataclasses

from discover.plan import Plan
from discover.recipe import Recipe


def chunk_of(recipe: Recipe) -> int | str | None:
    """Pairs in a search by evolution, members in one by meta-gradient; "auto"; or None: all of a device's share."""
    return getattr(recipe, recipe.method).chunk


def with_chunk(recipe: Recipe, chunk: int | str | None) -> Recipe:
    """The recipe with another chunk for its method."""
    part = recipe.method
    return dataclasses.replace(recipe, **{part: dataclasses.replace(getattr(recipe, part), chunk=chunk)})


def items(recipe: Recipe) -> int:
    """What chunks are made of: pairs of candidates, or members."""
    return recipe.evolution.population // 2 if recipe.method == "evolution" else recipe.metagrad.members


def must_divide(recipe: Recipe) -> bool:
    """Whether every chunk has to be whole."""
    return recipe.method == "metagrad" or recipe.rolls


def usual_chunk(recipe: Recipe, plan: Plan, *, fills_cache: bool = False) -> int | None:
    """The chunk that "auto" stands for, without a look at memory; the same on any number of devices.

    On CPUs, as measured: 4 pairs or 8 members, and 1 where a single life fills a core's cache. On other devices all items of
    a device's share, and of a meta-gradient all members, for the number of devices is not known here. Where chunks must be
    whole, the largest divisor that is not more.
    """
    if plan.chunk is None:
        return None if recipe.method == "evolution" else recipe.metagrad.members
    most = 1 if fills_cache else plan.chunk * (1 if recipe.method == "evolution" else 2)
    return largest_divisor(items(recipe), most) if must_divide(recipe) else min(most, items(recipe))


def largest_divisor(count: int, most: int) -> int:
    return next(n for n in range(min(count, most), 0, -1) if count % n == 0)
