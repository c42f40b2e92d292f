"""The search by MAP-Elites: whole lives, described by what their agents did, and an archive of elites."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

import learned_objectives as lo
from discover.agents.objectives import as_arrays
from discover.devices import parallel
from discover.devices.parallel import to_default_device
from discover.formats import number
from discover.plugins import blame, is_array, returned
from discover.searches import map_elites
from discover.searches.behaviour import DESCRIPTORS, live_watched, watched
from discover.searches.evolution_search import summarise
from discover.searches.map_elites import Archive, Candidates, MapElitesConfig
from discover.searches.problem import Problem, Setting
from discover.searches.search import Search, like

PyTree = Any


class MapElitesState(struct.PyTreeNode):
    """Of a search by MAP-Elites."""

    archive: Archive
    reference: jax.Array  # f32[E], the return of the start in generation 0


class MapElitesSearch(Search):
    """MAP-Elites over the leaves of an objective: for each cell of a grid of behaviours, the best objective found.

    A generation makes candidates from the elites (`map_elites.varied`) and trains agents with them for whole lives. The
    descriptors of a candidate are means over its lives and environments. Its score is the mean over environments of

        (its return - R) / max(|R|, 1),    R the return of the start in generation 0

    Candidates of all generations have the same tasks (levels, lengths of life, learning rates). The keys of their agents are
    those of the generation, so that a score is noisy, and an elite may be one that had luck: `search.lives` above 1 makes this
    rarer. The objective of the search is the elite with the highest score; evaluations of the run train it anew.
    """

    def __init__(self, config: MapElitesConfig, problem: Problem):
        super().__init__(config, problem)
        if problem.recipe.curriculum.kind == "plr":
            raise ValueError(
                "curriculum.kind 'plr' replays tasks between the windows of a meta-gradient; with MAP-Elites choose 'uniform' or "
                "'fixed'."
            )
        self.template = as_arrays(problem.template)
        self.settings = tuple(map(watched, problem.settings))
        self.cells = math.prod(config.grid)
        for name in config.descriptors:
            self._check(name)

    def _check(self, name: str) -> None:
        """ValueError, in a sentence, where a descriptor fails or returns no number. Nothing is run."""
        setting, descriptor = self.settings[0], DESCRIPTORS[name]
        key = jax.random.key(0)
        seen = jax.eval_shape(lambda: live_watched(setting, self.template, setting.tasks(key), key)[1])
        with blame(descriptor.of, f"the descriptor {name}"):
            found = jax.eval_shape(lambda: descriptor.of(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), seen)))
        if not (is_array(found) and jnp.shape(found) == ()):
            raise ValueError(f"the descriptor {name} must return float32[], and returns {returned(found)}.")

    def init(self) -> MapElitesState:
        c, count = self.config, len(self.settings)
        archive = map_elites.empty(self.template, cells=self.cells, environments=count, descriptors=len(c.descriptors))
        return MapElitesState(archive, jnp.zeros(count))

    def mean(self, state: MapElitesState) -> lo.Objective:
        best = jnp.argmax(state.archive.score)  # of an empty archive the first cell, which holds the start
        return jax.tree.map(lambda x: x[best], state.archive.objectives)

    def elite(self, state: MapElitesState, place: Sequence[int]) -> lo.Objective:
        """The objective in a cell, by its place along each descriptor. ValueError for an empty cell, and outside of the grid."""
        grid = self.config.grid
        if len(place) != len(grid) or not all(0 <= i < n for i, n in zip(place, grid, strict=True)):
            raise ValueError(
                f"a place in the grid {grid} has a number from 0 for each descriptor, and is {tuple(place)}."
            )
        cell = int(np.ravel_multi_index(tuple(place), grid))
        if not bool(state.archive.filled[cell]):
            raise ValueError(f"the cell {tuple(place)} is empty: no candidate behaved so.")
        return jax.tree.map(lambda x: x[cell], state.archive.objectives)

    def describe(self, state: MapElitesState, generation: int) -> dict[str, Any]:
        scores = np.asarray(state.archive.score)[np.asarray(state.archive.filled)]
        best, mean = (scores.max(), scores.mean()) if scores.size else (np.nan, np.nan)
        found = {"filled": scores.size, "best_elite": number(best), "mean_elite": number(mean)}
        return super().describe(state, generation) | found

    @cached_property
    def _programs(self):
        """Per environment: (keys of tasks and lives [L], candidates [P, ...]) -> (fitness f32[P], descriptors f32[P, D])."""
        chosen = [DESCRIPTORS[name] for name in self.config.descriptors]

        def program(setting: Setting):
            def candidate(keys, objective):
                def life(task_key, life_key):
                    fitness, seen = live_watched(setting, objective, setting.tasks(task_key), life_key)
                    return fitness, jnp.stack([each.of(seen) for each in chosen])

                fitness, descriptors = setting.agent.vmap(life)(*keys)
                return fitness.mean(), descriptors.mean(0)

            return parallel.sharded_map(candidate, chunk=self.problem.chunk, devices=self.problem.available)

        return [program(setting) for setting in self.settings]

    def _keys(self, e: int, generation: int) -> tuple[jax.Array, jax.Array]:
        """Keys [L] of the tasks, the same in all generations, and of the lives of a generation, in environment number e."""
        roots = (self.problem.key("birth", 0), self.problem.key("life", generation))
        tasks, lives = (jax.random.split(jax.random.fold_in(root, e), self.config.lives) for root in roots)
        return tasks, lives

    @cached_property
    def _varied(self):
        """(archive, key) -> candidates [P, ...]."""
        c = self.config
        sizes = {"count": c.population, "start": c.start_sigma, "iso": c.iso_sigma, "line": c.line_sigma}
        return jax.jit(lambda archive, key: map_elites.varied(key, archive, template=self.template, **sizes))

    @cached_property
    def _inserted(self):
        """(state, candidates, returns f32[P, E], descriptors f32[P, E, D], generation) -> the next state."""
        c = self.config
        low, high = (jnp.asarray(each, jnp.float32) for each in c.ranges)

        def inserted(state, objectives, returns, descriptors, generation):
            start = jnp.where(jnp.isfinite(returns[0]), returns[0], 0.0)  # candidate 0 of generation 0 is the start
            reference = jnp.where(generation == 0, start, state.reference)
            score = ((returns - reference) / jnp.maximum(jnp.abs(reference), 1.0)).mean(-1)
            score = jnp.where(jnp.isfinite(score), score, -jnp.inf)
            found = Candidates(objectives, score, returns, descriptors.mean(1))
            cells = map_elites.cell_of(found.descriptors, low=low, high=high, grid=c.grid)
            archive = map_elites.inserted(state.archive, found, cells=cells, generation=generation)
            return MapElitesState(archive, reference)

        return jax.jit(inserted)

    def programs(self, state: MapElitesState) -> dict[str, tuple[Any, tuple]]:
        candidates = like(state, self._varied)(state.archive, self.problem.key("ask", 0))
        return {
            name: (program, (self._keys(e, 0), candidates))
            for e, (name, program) in enumerate(zip(self.problem.recipe.envs, self._programs, strict=True))
        }

    def loop_seconds(self, state: MapElitesState) -> float:
        """As in `Search`, but with returns of zero: a generation of whole lives may take hours."""
        c, count = self.config, len(self.settings)
        returns, descriptors = jnp.zeros((c.population, count)), jnp.zeros((c.population, count, len(c.descriptors)))
        for _ in range(2):
            began = time.monotonic()
            candidates = self._varied(state.archive, self.problem.key("ask", 0))
            jax.block_until_ready(self._inserted(state, candidates, returns, descriptors, jnp.int32(0)))
            own = time.monotonic() - began
        return own

    def step(self, state: MapElitesState, generation: int) -> tuple[MapElitesState, dict[str, Any]]:
        candidates = self._varied(state.archive, self.problem.key("ask", generation))
        returns, descriptors = self._lived(candidates, generation)
        after = self._inserted(state, candidates, returns, descriptors, jnp.int32(generation))
        new = int((np.asarray(after.archive.born) == generation).sum())
        return after, summarise(returns[:, None], self.problem.recipe.envs) | {"new_elites": new}

    def _lived(self, candidates: PyTree, generation: int) -> tuple[jax.Array, jax.Array]:
        """(returns f32[P, E], descriptors f32[P, E, D]) of candidates."""
        found = []
        for e, program in enumerate(self._programs):
            tasks, lives = self._keys(e, generation)
            self.problem.updates += int(np.asarray(self.problem.lengths[e](tasks)).sum()) * self.config.population
            with self.problem.on_devices():
                found.append(program((tasks, lives), candidates))
        with self.problem.on_devices():
            returns, descriptors = zip(*map(to_default_device, found), strict=True)
        return jnp.stack(returns, axis=-1), jnp.stack(descriptors, axis=1)
