"""The largest chunk whose programs fit into a device's memory, by the compiler's own analysis of them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from discover.devices import processes
from discover.devices.plan import free_memory, plan_for
from discover.searches.chunks import lengths_differ, with_chunk
from discover.searches.recipe import Recipe, recipe_in
from discover.searches.registry import search_for

MEMORY_FRACTION = 0.8  # of what is free, since a run holds more than its largest program


def fit(recipe: Recipe, budget: int | None = None, devices: Sequence[Any] | None = None) -> Recipe:
    """The recipe with the largest chunk whose programs fit into a device.

    A chunk is a matter of speed and memory, and of rounding: it belongs to the recipe, and a run keeps the one it began with.

    Args:
      budget: bytes on each device; None: four fifths of what it has free, or on CPU devices of an equal share of the machine's.
      devices: those that the programs are for (default: all). With a budget they may be of a machine that is not there.

    Raises ValueError with a sentence if not even the smallest chunk fits.
    """
    devices = tuple(devices or jax.devices())
    if budget is None:
        budget = (
            -processes.max_over_processes(-int(MEMORY_FRACTION * free_memory(devices) / 2**20)) * 2**20
        )  # what all processes have
    candidates = sizes(recipe, len(devices), plan_for(devices).turns)
    smallest = needed(with_chunk(recipe, candidates[0]), devices)
    if smallest > budget:
        raise ValueError(
            f"with the smallest chunk, {candidates[0]}, a step needs {smallest / 1e9:.2f} GB on each device, and "
            f"{budget / 1e9:.2f} GB may be had: take fewer environments (agent.num_envs) or shorter rollouts (agent.num_steps)."
        )
    for size in reversed(candidates[1:]):
        # Arguments are the same for all chunks, so this is more than is needed, and worth a look only if it is near.
        if smallest * size / candidates[0] <= 2 * budget and needed(with_chunk(recipe, size), devices) <= budget:
            return with_chunk(recipe, size)
    return with_chunk(recipe, candidates[0])


def needed(recipe: Recipe, devices: Sequence[Any] | None = None) -> int:
    """Bytes on each device: arguments, results and temporaries of the largest program of a step. Nothing is run."""
    try:
        search = search_for(recipe, devices=devices)
        programs = search.programs(jax.eval_shape(search.init)).values()
        return max((total_memory(program.lower(*arguments).compile()) for program, arguments in programs), default=0)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return sys.maxsize


def total_memory(compiled: Any) -> int:
    found = compiled.memory_analysis()
    return found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes


def sizes(recipe: Recipe, devices: int, turns: int = 1) -> list[int]:
    """Chunks worth a try, the smallest first: doublings, and the whole of a device's share; divisors where they must be. Lives
    that differ in length are shared out in `turns` chunks a device at least (see `Plan`)."""
    count = recipe.search.items
    share = -(-count // (devices * (turns if lengths_differ(recipe) else 1)))
    if not recipe.search.whole_chunks:
        return sorted({2**i for i in range(share.bit_length()) if 2**i <= share} | {share})
    return [size for size in range(1, share + 1) if count % (size * devices) == 0] or [1]


def settled(recipe: Recipe, out: Path | None = None, devices: Sequence[Any] | None = None) -> Recipe:
    """The recipe with a number for a chunk "auto", as far as a number can be known before the search is made.

    The number is the one of the run in `out`, if there is a run. For devices whose plan has no number it is the largest that
    fits. Otherwise the recipe stays as it is: `Search` knows the usual chunk.
    """
    if recipe.search.chunk != "auto":
        return recipe
    if (recorded := recorded_chunk(recipe, out)) >= 0:
        return with_chunk(recipe, recorded or None)
    return fit(recipe, devices=devices) if plan_for(devices).chunk is None else recipe


def advice(recipe: Recipe, devices: Sequence[Any] | None = None) -> str:
    """What to do where a step ran out of memory: the largest smaller chunk that should fit."""
    devices, chunk = tuple(devices or jax.devices()), recipe.search.chunk
    flag = "--search.chunk"
    smaller = [
        size
        for size in sizes(recipe, len(devices), plan_for(devices).turns)
        if not isinstance(chunk, int) or size < chunk
    ]
    for size in reversed(smaller):
        need = needed(with_chunk(recipe, size), devices)
        if need <= MEMORY_FRACTION * free_memory(devices):
            return f"{flag} {size} needs {need / 1e9:.2f} GB and should fit: the same command with it continues"
    return "No smaller chunk fits: take fewer environments (agent.num_envs) or shorter rollouts (agent.num_steps), in a new run"


def fitted(recipe: Recipe, out: Path | None = None, devices: Sequence[Any] | None = None) -> Recipe:
    """The recipe with the chunk of the run in `out`, if there is a run, or else with the largest that fits, whatever it has."""
    recorded = recorded_chunk(recipe, out)
    return with_chunk(recipe, recorded or None) if recorded >= 0 else fit(recipe, devices=devices)


def recorded_chunk(recipe: Recipe, out: Path | None) -> int:
    """The chunk of the run in a directory, as its first process reads it: 0 for None, -1 where no run has this search."""
    found = -1
    if out is not None and processes.is_primary() and (out / "recipe.json").exists():
        with contextlib.suppress(ValueError):  # not a recipe: the store refuses it, with a sentence
            theirs = recipe_in(out)
            found = int(theirs.search.chunk or 0) if type(theirs.search) is type(recipe.search) else -1
    return int(processes.broadcast_from_first(np.int32(found)))
