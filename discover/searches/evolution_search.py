"""The search by evolution: candidates in pairs, each judged by whole lives."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import learned_objectives as lo
from discover.formats import number
from discover.plugins import blame, is_array, returned
from discover.searches import racing
from discover.searches.evolution import SHAPINGS, Evolution, EvolutionConfig
from discover.searches.problem import Problem
from discover.searches.search import Search, like
from envs import plugs

PyTree = Any


class EvolutionSearch(Search):
    """Evolution strategies: candidates in pairs, each life judged at its end."""

    def __init__(self, config: EvolutionConfig, problem: Problem):
        super().__init__(config, problem)
        if problem.recipe.curriculum.kind == "plr":
            raise ValueError(
                "curriculum.kind 'plr' replays tasks between the windows of a meta-gradient; with evolution choose 'uniform' or "
                "'fixed'."
            )
        self.evolution = Evolution(config, problem.template)
        _check_shaping(config.shaping, (config.items, 2))
        if config.racing < 1 and racing.sizes(config.population, config.racing, config.lives)[-1] == config.population:
            raise ValueError(
                f"racing {config.racing} stops no candidate of a population of {config.population}: make racing smaller, or the "
                "population larger."
            )

    def init(self) -> PyTree:
        return self.evolution.init(self.problem.key("start", 0))

    def mean(self, state: PyTree) -> lo.Objective:
        return self.evolution.mean(state)

    def describe(self, state: PyTree, generation: int) -> dict[str, Any]:
        sigma = self.evolution.sigma(state, generation)
        return {"mean_norm": number(jnp.linalg.norm(state.mean)), "sigma": number(sigma)}

    @cached_property
    def _ask(self):
        return jax.jit(self.evolution.ask)

    @cached_property
    def _tell(self):
        shape = SHAPINGS[self.config.shaping]

        def tell(key, population, fitness, search, weight=1.0):
            shaped = jnp.stack([shape(f) for f in jnp.moveaxis(fitness, -1, 0)]).mean(0)
            return self.evolution.tell(key, population, fitness, search, weight * shaped)

        return jax.jit(tell)

    @cached_property
    def _tell_ranks(self):
        return jax.jit(self.evolution.tell)

    def step(self, state: PyTree, generation: int) -> tuple[PyTree, dict[str, Any]]:
        population, state = self._ask(self.problem.key("ask", generation), state, jnp.int32(generation))
        if self.config.racing < 1:
            return self._race(state, population, generation)
        fitness = self.problem.fitness(population, self.problem.key("life", generation), **self._sharing)
        state = self._tell(self.problem.key("tell", generation), population, fitness, state)
        return state, summarise(fitness, self.problem.recipe.envs)

    def _race(self, state: PyTree, population: PyTree, generation: int) -> tuple[PyTree, dict[str, Any]]:
        """A step in which candidates that lose in the first lives have no later ones."""
        c, key = self.config, self.problem.key
        fitness, ranks = racing.race(
            self.problem,
            population,
            key("life", generation),
            SHAPINGS[c.shaping],
            share=c.racing,
            rounds=c.lives,
        )
        state = self._tell_ranks(key("tell", generation), population, fitness, state, ranks)
        return state, summarise(fitness, self.problem.recipe.envs)

    @property
    def _sharing(self) -> dict[str, Any]:
        shared = "population" if self.config.shared_keys == "population" else "group"
        return {"lives": self.config.lives_per_item // 2, "shared_keys": shared}

    @property
    def updates_per_step(self) -> float:
        c = self.config
        rounds = sum(racing.sizes(c.population, c.racing, c.lives)) / c.population if c.racing < 1 else 1
        return super().updates_per_step * rounds

    def loop_seconds(self, state: PyTree) -> float:
        """As in `Search`, but with a fitness of zero: a generation of whole lives may take hours."""
        key, fitness = self.problem.key, jnp.zeros((self.config.items, 2, len(self.problem.settings)))
        for _ in range(2):
            began = time.monotonic()
            population, asked = self._ask(key("ask", 0), state, jnp.int32(0))
            jax.block_until_ready(self._tell(key("tell", 0), population, fitness, asked))
            summarise(fitness, self.problem.recipe.envs)
            own = time.monotonic() - began
        return own

    def programs(self, state: PyTree) -> dict[str, tuple[Any, tuple]]:
        population, _ = like(state, self._ask)(self.problem.key("ask", 0), state, jnp.int32(0))
        return self.problem.programs(population, **self._sharing)


def _check_shaping(name: str, shape: tuple[int, int]) -> None:
    """ValueError, in a sentence, where the shaping of this name fails, or returns no array of this shape. Nothing is run."""
    shaping, wrong = SHAPINGS[name], []

    def traced(fitness):
        shaped = shaping(fitness)
        floats = is_array(shaped) and jnp.issubdtype(jnp.result_type(shaped), jnp.floating)
        if not floats or jnp.shape(shaped) != shape:
            wrong.append(returned(shaped))

    with blame(shaping, f"the shaping {name}"):
        jax.eval_shape(traced, jax.ShapeDtypeStruct(shape, jnp.float32))
    if wrong:
        raise ValueError(
            f"the shaping {name} must return float32{list(shape)}, and returns {wrong[0]} ({plugs.where(shaping)})."
        )


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
