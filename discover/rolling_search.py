"""The search by evolution over lives that roll on: each generation is a window of every candidate's life."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.flatten_util import ravel_pytree

import learned_objectives as lo
from discover import curriculum as cu
from discover import parallel
from discover.agent import AgentState, diverged
from discover.evolution_search import EvolutionSearch, summarise
from discover.parallel import free
from discover.recipe import Recipe
from discover.search import MetaState, Setting, as_known, like

PyTree = Any


class RollingState(struct.PyTreeNode):
    """Of a search over lives that roll on."""

    strategy: PyTree  # evosax's state
    lives: tuple[AgentState, ...]  # by environment, leaves [P // 2, 2, L, ...]


class RollingSearch(EvolutionSearch):
    """Evolution in which a candidate keeps its perturbation for a whole life, and is judged after each window of it.

        g = sum_p z_p (f_p+ - f_p-) / (P sigma_p^2),    f the shaped fitness of a window

    where z_p ~ N(0, sigma_p^2) is drawn when the lives of pair p begin, at the sigma of that generation. A fitness that is
    linear in the perturbations of all windows lived so far is then weighted evenly over them, also while sigma decays.

    A generation costs `evolution.window` updates of each agent, however long a life is, while what a perturbation does late in
    life still counts. Pairs begin their lives at different times, evenly spread, so that every generation sees every age.
    Reference: Noise-Reuse Evolution Strategies, Li et al. 2023, arXiv:2304.12180; the mean moves here while a life goes on.
    """

    def __init__(self, recipe: Recipe, template: lo.Objective | None = None, devices: Sequence[Any] | None = None):
        super().__init__(recipe, template, devices)
        c = self.recipe.evolution
        if recipe.total_steps is None:
            raise ValueError("evolution.window needs lives of one length: give total_steps.")
        if c.strategy != "Open_ES":
            raise ValueError(f"evolution.window is for strategy Open_ES, and strategy is {c.strategy}.")
        if (c.population // 2) % (self.chunk or 1):
            raise ValueError(
                f"with evolution.window, chunk must divide the {c.population // 2} pairs, and is {c.chunk}."
            )
        chunks = 1 if self.chunk is None else c.population // 2 // self.chunk
        self.devices = parallel.devices_for(chunks, self.available)
        self.windows = -(-self.settings[0].tasks.longest // (c.window or 1))  # in a life

    def began(self, generation: int) -> np.ndarray:
        """i32[P // 2]: the generation, from 0, in which the lives of each pair that are going on began."""
        pairs = self.recipe.evolution.population // 2
        offset = np.arange(pairs) * self.windows // pairs
        return np.maximum(generation - (generation + offset) % self.windows, 0).astype(np.int32)

    def taken(self, generation: int) -> int:
        """Updates of all agents in a generation, from 0: the last window of a life may be a short one."""
        c = self.recipe.evolution
        left = self.settings[0].tasks.longest - (generation - self.began(generation)) * (c.window or 1)
        return int(np.minimum(left, c.window or 1).sum()) * 2 * c.lives * len(self.settings)

    def weight(self, generation: int) -> np.ndarray:
        """f32[P // 2]: how much the window of each pair counts in a generation, from 0.

        The product of its lateness, 1 in the mean over a life, and (sigma / sigma_p)^2: `Evolution.tell` divides by the sigma
        of this generation.
        """
        lateness = self.recipe.evolution.lateness
        ages = (np.arange(self.windows) + 1.0) / self.windows
        weights, began = ages**lateness, self.began(generation)
        sigma, born = (np.asarray(self.evolution.sigma(None, g), np.float64) for g in (generation, began))
        return ((weights / weights.mean())[generation - began] * (sigma / born) ** 2).astype(np.float32)

    def start(self) -> PyTree:
        keys = [self._life_keys(e, self.began(0)) for e in range(len(self.settings))]
        lives = tuple(program(None, each) for program, each in zip(self._births, keys, strict=True))
        return RollingState(super().start(), lives)

    def mean(self, state: MetaState) -> lo.Objective:
        return self.evolution.mean(state.search.strategy)

    def describe(self, state: MetaState) -> dict[str, Any]:
        return super().describe(state.replace(search=state.search.strategy))

    def placed(self, state: MetaState) -> MetaState:
        lives = tuple(parallel.place(each, self.devices) for each in state.search.lives)
        strategy = free(state.search.strategy)
        return free(state.replace(search=None)).replace(search=RollingState(strategy, lives))

    def _life_keys(self, e: int, began: np.ndarray) -> jax.Array:
        """Keys [P // 2, L] of lives that began in those generations; the members of a pair share them."""
        root = jax.random.fold_in(self._key("life", 0), e)

        def of_pair(p, generation):
            return jax.random.split(
                jax.random.fold_in(jax.random.fold_in(root, generation), p), self.recipe.evolution.lives
            )

        return jax.vmap(of_pair)(jnp.arange(len(began)), began)

    @cached_property
    def _births(self):
        """Per environment: keys [P // 2, L] -> the newborn, [P // 2, 2, L, ...]."""

        def program(setting: Setting):
            def pair(_, keys):
                def one(key):
                    return setting.agent.init(setting.tasks(jax.random.fold_in(key, cu.TASK)), key)

                newborn = jax.vmap(one)(keys)
                return jax.tree.map(lambda x: jnp.stack([x, x]), newborn)

            return parallel.spread(pair, chunk=self.chunk, devices=self.devices)

        return [program(setting) for setting in self.settings]

    @cached_property
    def _windows(self):
        """Per environment: (pairs of objectives, lives, their keys) -> (f32[P // 2, 2], lives)."""

        def program(setting: Setting):
            def pair(_, item):
                objectives, lives, keys = item

                def candidate(objective, states):
                    def life(key, state):
                        task = setting.tasks(jax.random.fold_in(key, cu.TASK))
                        window = self.recipe.evolution.window
                        state, returned = setting.agent.stretch(objective, task, state, jnp.int32(0), jnp.int32(window))
                        return jnp.where(diverged(state), jnp.nan, as_known(state, returned)), state

                    returned, states = setting.agent.vmap(life)(keys, states)
                    return returned.mean(), states

                return setting.agent.vmap(candidate)(objectives, lives)

            return parallel.spread(pair, chunk=self.chunk, devices=self.devices)

        return [program(setting) for setting in self.settings]

    @cached_property
    def _renewed(self):
        """(lives, newborn, bool[P // 2]) -> lives, some pairs of which are newborn."""

        def renewed(lives, newborn, anew):
            return jax.tree.map(lambda x, y: jnp.where(anew.reshape(-1, *(1,) * (x.ndim - 1)), y, x), lives, newborn)

        return jax.jit(renewed)

    @cached_property
    def _perturbed(self):
        """(strategy's state, generation, when each pair's lives began) -> candidates [P // 2, 2, ...], the state to tell."""
        _, unravel = ravel_pytree(self.template)
        root = self._key("ask", 0)

        def perturbed(strategy, generation, began):
            strategy = strategy.replace(std=self.evolution.sigma(strategy, generation))

            def of_pair(p, born):
                key = jax.random.fold_in(jax.random.fold_in(root, born), p)
                z = self.evolution.sigma(strategy, born) * jax.random.normal(key, strategy.mean.shape)
                return jax.vmap(unravel)(jnp.stack([strategy.mean + z, strategy.mean - z]))

            return jax.vmap(of_pair)(jnp.arange(began.shape[0]), began), strategy

        return jax.jit(perturbed)

    def programs(self, state: MetaState) -> dict[str, tuple[Any, tuple]]:
        began = self.began(0)
        strategy = like(state, free)(state.search.strategy)
        population, _ = like(state, self._perturbed)(strategy, state.generation, began)
        return {
            name: (window, (None, (population, state.search.lives[e], self._life_keys(e, began))))
            for e, (name, window) in enumerate(zip(self.recipe.envs, self._windows, strict=True))
        }

    def generation(self, state: MetaState) -> tuple[MetaState, dict[str, Any]]:
        index = int(state.generation)
        began = self.began(index)
        anew = (began == index) & (index > 0)  # the first are newborn
        population, strategy = self._perturbed(free(state.search.strategy), state.generation, began)
        population = free(population)
        fitness, lives = [], []
        for e, window in enumerate(self._windows):
            keys, before = self._life_keys(e, began), state.search.lives[e]
            if anew.any():
                before = self._renewed(before, self._births[e](None, keys), anew)
            found, after = window(None, (population, before, keys))
            fitness.append(found)
            lives.append(after)
        fitness = free(jnp.stack([free(each) for each in fitness], axis=-1))
        strategy = self._tell(self._key("tell", index), population, fitness, strategy, self.weight(index)[:, None])
        updates = state.updates + self.taken(index)
        search = RollingState(strategy, tuple(lives))
        return state.replace(generation=state.generation + 1, updates=updates, search=search), summarise(
            fitness, self.recipe.envs
        )
