"""The search by evolution: candidates in pairs, each judged by whole lives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import learned_objectives as lo
from discover import curriculum as cu
from discover import parallel
from discover.evolution import SHAPINGS, Evolution
from discover.parallel import free
from discover.recipe import Recipe
from discover.record import number
from discover.search import MetaState, Search, Setting, dealt, life_fitness, like

PyTree = Any


class EvolutionSearch(Search):
    """Evolution strategies: candidates in pairs, each life judged at its end."""

    def __init__(self, recipe: Recipe, template: lo.Objective | None = None, devices: Sequence[Any] | None = None):
        super().__init__(recipe, template, devices)
        if recipe.curriculum.kind == "plr":
            raise ValueError(
                "curriculum.kind 'plr' replays tasks between the windows of a meta-gradient; with evolution choose 'uniform' or "
                "'fixed'."
            )
        self.evolution = Evolution(self.recipe.evolution, self.template)

    def start(self) -> PyTree:
        return self.evolution.init(self._key("start", 0))

    def mean(self, state: MetaState) -> lo.Objective:
        return self.evolution.mean(state.search)

    def describe(self, state: MetaState) -> dict[str, Any]:
        sigma = self.evolution.sigma(state.search, int(state.generation))
        return {"mean_norm": number(jnp.linalg.norm(state.search.mean)), "sigma": number(sigma)}

    @cached_property
    def _ask(self):
        return jax.jit(self.evolution.ask)

    @cached_property
    def _tell(self):
        shape = SHAPINGS[self.recipe.evolution.shaping]

        def tell(key, population, fitness, search, weight=1.0):
            shaped = jnp.stack([shape(f) for f in jnp.moveaxis(fitness, -1, 0)]).mean(0)
            return self.evolution.tell(key, population, fitness, search, weight * shaped)

        return jax.jit(tell)

    @cached_property
    def _lives(self):
        """Per environment: keys shared by all, (pairs of objectives, keys of each pair) -> f32[P // 2, 2].

        A life's key is its task's too, so that whoever shares a key meets the same level for the same time.
        """

        def program(setting: Setting):
            def candidate(objective, keys):
                def life(key):
                    task = setting.tasks(jax.random.fold_in(key, cu.TASK))
                    return life_fitness(setting, objective, task, key)

                return setting.agent.vmap(life)(keys).mean()

            def pair(shared_keys, item):
                objectives, pair_keys = item
                keys = pair_keys if shared_keys is None else shared_keys
                return setting.agent.vmap(lambda objective: candidate(objective, keys))(objectives)

            return parallel.spread(pair, chunk=self.chunk, devices=self.available)

        return [program(setting) for setting in self.settings]

    def generation(self, state: MetaState) -> tuple[MetaState, dict[str, Any]]:
        index = int(state.generation)
        population, search = self._ask(self._key("ask", index), state.search, state.generation)
        fitness, updates = self.fitness(index, population)
        search = self._tell(self._key("tell", index), population, fitness, search)
        state = state.replace(generation=state.generation + 1, updates=state.updates + updates, search=search)
        return state, summarise(fitness, self.recipe.envs)

    def programs(self, state: MetaState) -> dict[str, tuple[Any, tuple]]:
        c = self.recipe.evolution
        population, _ = like(state, self._ask)(self._key("ask", 0), state.search, state.generation)
        shared = c.shared_keys == "population"
        keys = jax.random.split(self._key("life", 0), (c.lives,) if shared else (c.population // 2, c.lives))
        arguments = (keys, (population, None)) if shared else (None, (population, keys))
        return {name: (lives, arguments) for name, lives in zip(self.recipe.envs, self._lives, strict=True)}

    def fitness(self, index: int, population: PyTree) -> tuple[jax.Array, int]:
        """What the candidates of a generation come to: (f32[P // 2, 2, E], updates of all agents)."""
        c = self.recipe.evolution
        fitness, updates = [], 0
        for e, lives in enumerate(self._lives):
            key = jax.random.fold_in(self._key("life", index), e)
            shape = (c.lives,) if c.shared_keys == "population" else (c.population // 2, c.lives)
            keys = jax.random.split(key, shape)
            task_keys = jax.vmap(lambda k: jax.random.fold_in(k, cu.TASK))(keys.reshape(-1))
            lengths = np.asarray(self._lengths[e](task_keys)).reshape(shape)
            updates += int(lengths.sum()) * c.population // (1 if lengths.ndim == 1 else len(lengths))
            if c.shared_keys == "population":
                fitness.append(lives(keys, (population, None)))
            else:
                fitness.append(dealt(lives, None, (population, keys), lengths.max(-1), self.chunk, len(self.available)))
        return free(jnp.stack(fitness, axis=-1)), updates


def summarise(fitness: jax.Array, names: tuple[str, ...]) -> dict[str, Any]:
    """Of raw fitness f32[P // 2, 2, E]: per environment over candidates that did not diverge, and the share that did."""
    # On the host: how many diverged is no shape to compile for. In double precision, in which no sum of them is too large.
    out, fitness = {}, np.asarray(fitness, np.float64)
    for e, name in enumerate(names):
        values = fitness[..., e][np.isfinite(fitness[..., e])]
        if values.size:
            out[name] = {
                "mean": float(values.mean()),
                "std": float(values.std()),
                "best": float(values.max()),
            }
        else:
            out[name] = {"mean": None, "std": None, "best": None}
    return {"fitness": out, "diverged": float((~np.isfinite(fitness)).any(-1).mean())}
