"""Estimate a run without starting it: `discover meta-train RECIPE --dry-run`. Compiles the programs of a step; writes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from discover.devices import parallel
from discover.formats import clock
from discover.runs.fit import settled
from discover.searches.outer_loop import MetaState, OuterLoop
from discover.searches.problem import Setting
from discover.searches.recipe import Recipe
from discover.searches.registry import search_for

PyTree = Any


def dry_run(recipe: Recipe, out: Path | None = None, devices: Sequence[Any] | None = None) -> Iterator[str]:
    """Lines about a recipe: shapes, parameters, devices, chunk, memory, environment steps, time.

    Uses the chunk of the run in `out`, if there is one, and these devices (default: all). Memory is the compiler's analysis of
    the programs of a step; a later run finds them in the compilation cache. Time is measured on a few updates, or on one
    meta-gradient, and multiplied by their number.
    """
    search = search_for(settled(recipe, out, devices), devices=devices)
    yield "starting     the search: its first agents and levels"
    state = search.init()
    yield from _objective(search)
    yield from _lives(search)
    count, kind = jax.process_count(), search.available[0].device_kind
    yield f"devices      {len(search.available)} of kind {kind}{f', in {count} processes' if count > 1 else ''}"
    yield _chunk(search)
    seconds = 0.0
    for name, (program, arguments) in search.programs(state).items():
        yield f"compiling    {name}"
        began = time.monotonic()
        compiled = program.lower(*arguments).compile()
        seconds += time.monotonic() - began
        yield f"memory       {_memory(compiled)} on each device: {name}"
    yield f"compilation  {seconds:.0f} s (less if cached)"
    yield f"checkpoint   {_size(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(parallel.unwrap_keys(state))))}"
    yield "measuring    the time of a few updates"
    try:
        yield from _time(search, state)
        yield f"loop         {1e3 * search.loop_seconds(state):.1f} ms overhead a step"
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        yield "time         cannot be measured, since a step does not fit into memory: use --fit"


def _chunk(search: OuterLoop) -> str:
    config = search.recipe.search
    if config.chunk is None:
        return f"chunk        all {config.unit} of each device at a time"
    unit = config.unit.removesuffix("s") if config.chunk == 1 else config.unit
    return f"chunk        {config.chunk} {unit} at a time on each device"


def _objective(search: OuterLoop) -> Iterator[str]:
    leaves = jax.tree_util.tree_flatten_with_path(search.template)[0]
    total = sum(np.size(x) for _, x in leaves)
    yield f"objective    {type(search.template).__name__}, {total:,} parameters"
    for path, x in leaves:
        yield f"             {jax.tree_util.keystr(path).lstrip('.')} {np.dtype(x.dtype).name}{list(np.shape(x))}"


def _lives(search: OuterLoop) -> Iterator[str]:
    recipe, steps = search.recipe, search.recipe.agent.steps_per_update
    for name, setting in zip(recipe.envs, search.settings, strict=True):
        params = jax.eval_shape(setting.agent.networks.init, jax.random.key(0))
        size = sum(x.size for x in jax.tree.leaves(params))
        longest = setting.tasks.longest
        upto = "up to " if setting.tasks.lifetimes.shortest < setting.tasks.lifetimes.longest else ""
        yield f"lives        {name}: {upto}{longest:,} updates of {steps:,} environment steps; agents of {size:,} parameters"
    per_step = search.search.updates_per_step
    evaluations = 1 + -(-recipe.generations // recipe.evaluate_every)
    evaluation = recipe.evaluation_seeds * sum(search.problem.mean_lengths)
    total = (per_step * recipe.generations + evaluation * evaluations) * steps
    yield (
        f"steps        {recipe.generations:,} of {per_step * steps:,.0f} environment steps, {evaluations} evaluations of "
        f"{evaluation * steps:,.0f}: {total:,.0f} in all"
    )


def _time(search: OuterLoop, state: MetaState) -> Iterator[str]:
    recipe = search.recipe
    if recipe.search.times_programs:
        step = 0.0
        for program, arguments in search.programs(state).values():
            _seconds(program, *arguments)
            step += _seconds(program, *arguments)
        yield f"time         {step:.2f} s a step, {clock(step * recipe.generations)} without evaluations and new lives"
        return
    step = evaluation = 0.0
    of_a_step = search.search.updates_per_step / len(search.settings)
    for setting, length in zip(search.settings, search.problem.mean_lengths, strict=True):
        update = _seconds_of_an_update(search, setting)
        step += update * of_a_step
        evaluation += update * length * recipe.evaluation_seeds
    whole = step * recipe.generations + evaluation * (1 + -(-recipe.generations // recipe.evaluate_every))
    yield f"time         {step:.1f} s a generation, {evaluation:.1f} s an evaluation, {clock(whole)} in all"


def _seconds_of_an_update(search: OuterLoop, setting: Setting) -> float:
    """Of one agent among those that are trained at once."""
    config, devices = search.recipe.search, len(search.available)
    share = -(-config.items // devices) if config.chunk is None else config.chunk
    lanes = config.lives_per_item * share  # side by side on a device

    def life(shared, key):
        objective, updates = shared
        return setting.agent.train(objective, setting.tasks(key), key, num_updates=updates)[1]

    program = parallel.sharded_map(life, chunk=lanes, devices=search.available)
    keys = jax.random.split(jax.random.key(0), lanes * devices)
    _seconds(program, (search.template, jnp.int32(1)), keys)
    few, more = (_seconds(program, (search.template, jnp.int32(n)), keys) for n in (1, 4))
    return max(more - few, 0.0) / 3 / len(keys)


def _seconds(program, *arguments) -> float:
    began = time.monotonic()
    jax.block_until_ready(program(*arguments))
    return time.monotonic() - began


def _memory(compiled: Any) -> str:
    found = compiled.memory_analysis()
    parts = {
        "arguments": found.argument_size_in_bytes,
        "results": found.output_size_in_bytes,
        "temporary": found.temp_size_in_bytes,
    }
    return f"{_size(sum(parts.values()))} ({', '.join(f'{name} {_size(n)}' for name, n in parts.items())})"


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count / 1e3:.1f} kB"
