"""How many lives go side by side on a device: as many as its memory holds, by what the compiler says of the step's programs."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import jax

from discover import processes
from discover.recipe import Recipe
from discover.run import search_for

PART = 0.8  # of what is free, since a run holds more than its largest program


def fit(recipe: Recipe, budget: int | None = None) -> Recipe:
    """The recipe with the largest chunk whose programs fit into a device.

    A chunk is a matter of speed and memory, and of rounding: it belongs to the recipe, and a run keeps the one it began with.

    Args:
      budget: bytes on each device; None: four fifths of what it has free, or on CPU devices of an equal share of the machine's.

    Raises ValueError with a sentence if not even the smallest chunk fits.
    """
    if budget is None:
        budget = -processes.largest(-int(PART * free_memory() / 2**20)) * 2**20  # what all processes have
    candidates = sizes(recipe, jax.device_count())
    smallest = needed(with_chunk(recipe, candidates[0]))
    if smallest > budget:
        raise ValueError(
            f"with the smallest chunk, {candidates[0]}, a step needs {smallest / 1e9:.2f} GB on each device, and "
            f"{budget / 1e9:.2f} GB may be had: take fewer environments (agent.num_envs) or shorter rollouts (agent.num_steps)."
        )
    for size in reversed(candidates[1:]):
        # Arguments are the same for all chunks, so this is more than is needed, and worth a look only if it is near.
        if smallest * size / candidates[0] <= 2 * budget and needed(with_chunk(recipe, size)) <= budget:
            return with_chunk(recipe, size)
    return with_chunk(recipe, candidates[0])


def needed(recipe: Recipe) -> int:
    """Bytes on each device: arguments, results and what is in between, of the largest program of a step."""
    try:
        search = search_for(recipe)
        programs = search.programs(search.init()).values()
        return max(total_memory(program.lower(*arguments).compile()) for program, arguments in programs)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return sys.maxsize


def total_memory(compiled: Any) -> int:
    found = compiled.memory_analysis()
    return found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes


def free_memory() -> int:
    """Bytes that each device has left."""
    device = jax.local_devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    info, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    left = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if info.exists():
        left = 1024 * next(
            int(line.split()[1]) for line in info.read_text().splitlines() if line.startswith("MemAvailable")
        )
    if limit.exists() and limit.read_text().strip().isdigit():  # of a container
        left = min(left, int(limit.read_text()))
    return left // jax.local_device_count()


def with_chunk(recipe: Recipe, chunk: int | None) -> Recipe:
    """In the method that the recipe searches by."""
    part = recipe.method
    return dataclasses.replace(recipe, **{part: dataclasses.replace(getattr(recipe, part), chunk=chunk)})


def sizes(recipe: Recipe, devices: int) -> list[int]:
    """Chunks worth a try, the smallest first: doublings, and the whole of a device's share; divisors where they must be."""
    count = recipe.evolution.population // 2 if recipe.method == "evolution" else recipe.metagrad.members
    share = -(-count // devices)
    if recipe.method == "evolution" and not recipe.rolls:
        return sorted({2**i for i in range(share.bit_length()) if 2**i <= share} | {share})
    return [size for size in range(1, share + 1) if count % (size * devices) == 0] or [1]
