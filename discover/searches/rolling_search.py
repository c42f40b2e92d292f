"""The search by evolution over lives that roll on: each generation is a window of every candidate's life."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.flatten_util import ravel_pytree

import learned_objectives as lo
from discover.agents.agent import AgentState, diverged
from discover.devices import parallel
from discover.devices.parallel import to_default_device
from discover.searches import curriculum as cu
from discover.searches.evolution import EvolutionConfig
from discover.searches.evolution_search import EvolutionSearch, summarise
from discover.searches.problem import Problem, Setting, as_known
from discover.searches.search import Search, like

PyTree = Any


@dataclass(frozen=True)
class RollingConfig(EvolutionConfig):
    """Evolution over lives that roll on: each generation is a window of every candidate's life."""

    estimator: Literal["nres", "pes", "es_single"] = "nres"  # of the gradient, from windows: see `RollingSearch`
    window: int = 8  # updates of a life per generation
    late_window_weight: float = (
        0.0  # a window that ends when n/N of the life is over counts (n/N) ** late_window_weight
    )

    whole_chunks: ClassVar[bool] = True
    whole_lives: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        if self.estimator not in (known := get_args(get_type_hints(RollingConfig)["estimator"])):
            raise ValueError(f"search.estimator must be one of {', '.join(known)}, and is {self.estimator!r}.")
        if self.window < 1:
            raise ValueError(f"window must be at least 1 update, and is {self.window}.")
        if not 0 <= self.late_window_weight < math.inf:
            raise ValueError(f"late_window_weight must not be negative, and is {self.late_window_weight}.")
        if self.racing < 1:
            raise ValueError(f"in rolling evolution all lives go on: racing must be 1, and is {self.racing}.")
        if self.strategy != "Open_ES":
            raise ValueError(f"rolling evolution has strategy Open_ES, and strategy is {self.strategy}.")

    def build(self, problem):
        return RollingSearch(self, problem)


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
    The mean moves during a life. `estimator` chooses among

        nres        as above (Noise-Reuse Evolution Strategies, Li et al. 2023, arXiv:2304.12180)
        pes         a new e_p ~ N(0, sigma^2) in every window perturbs a pair, and z_p is the sum of those since its lives began
                    (Persistent Evolution Strategies, Vicol et al. 2021, arXiv:2112.13835). Where sigma decays, each e_p is
                    weighted by (sigma_p / its own sigma)^2
        es_single   as nres, and all pairs begin their lives together (ES-Single, Vicol 2023, ICML)
    """

    def __init__(self, config: RollingConfig, problem: Problem):
        super().__init__(config, problem)
        if problem.recipe.total_steps is None or problem.recipe.longest_steps is not None:
            raise ValueError("rolling evolution needs lives of one length: give total_steps and no longest_steps.")
        chunk = problem.chunk or config.items
        if config.items % chunk:
            raise ValueError(
                f"in rolling evolution chunk must divide the {config.items} pairs, and is {problem.chunk}."
            )
        self.devices = parallel.devices_for(config.items // chunk, problem.available)
        self.windows = -(-problem.settings[0].tasks.longest // config.window)  # in a life

    def began(self, generation: int) -> np.ndarray:
        """i32[P // 2]: the generation, from 0, in which the current lives of each pair began."""
        pairs = self.config.items
        offset = np.arange(pairs) * self.windows // pairs * (self.config.estimator != "es_single")
        return np.maximum(generation - (generation + offset) % self.windows, 0).astype(np.int32)

    def drawn(self, generation: int) -> np.ndarray:
        """i32[P // 2]: the generation, from 0, in which the perturbation of each pair was drawn."""
        began = self.began(generation)
        return np.full_like(began, generation) if self.config.estimator == "pes" else began

    def taken(self, generation: int) -> int:
        """Updates of all agents in a generation, from 0: the last window of a life may be a short one."""
        c, settings = self.config, self.problem.settings
        left = settings[0].tasks.longest - (generation - self.began(generation)) * c.window
        return int(np.minimum(left, c.window).sum()) * 2 * c.lives * len(settings)

    def weight(self, generation: int) -> np.ndarray:
        """f32[P // 2]: how much the window of each pair counts in a generation, from 0.

        The product of its weight by age, 1 in the mean over a life, and (sigma / sigma_p)^2: `Evolution.tell` divides by the
        sigma of this generation.
        """
        ages = (np.arange(self.windows) + 1.0) / self.windows
        weights, began = ages**self.config.late_window_weight, self.began(generation)
        sigma, born = (np.asarray(self.evolution.sigma(None, g), np.float64) for g in (generation, began))
        return ((weights / weights.mean())[generation - began] * (sigma / born) ** 2).astype(np.float32)

    def init(self) -> PyTree:
        keys = [self._life_keys(e, self.began(0)) for e in range(len(self.problem.settings))]
        lives = tuple(program(None, each) for program, each in zip(self._births, keys, strict=True))
        return RollingState(super().init(), lives)

    def mean(self, state: RollingState) -> lo.Objective:
        return super().mean(state.strategy)

    def describe(self, state: RollingState, generation: int) -> dict[str, Any]:
        return super().describe(state.strategy, generation)

    def placed(self, state: RollingState) -> RollingState:
        lives = tuple(parallel.shard(each, self.devices) for each in state.lives)
        return RollingState(to_default_device(state.strategy), lives)

    @property
    def updates_per_step(self) -> float:
        c = self.config
        return float(c.population * c.lives * c.window * len(self.problem.settings))

    def _life_keys(self, e: int, began: np.ndarray) -> jax.Array:
        """Keys [P // 2, L] of lives that began in those generations; the members of a pair share them."""
        root = jax.random.fold_in(self.problem.key("life", 0), e)

        def of_pair(p, generation):
            return jax.random.split(jax.random.fold_in(jax.random.fold_in(root, generation), p), self.config.lives)

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

            return parallel.sharded_map(pair, chunk=self.problem.chunk, devices=self.devices)

        return [program(setting) for setting in self.problem.settings]

    @cached_property
    def _windows(self):
        """Per environment: (pairs of objectives, lives, their keys) -> (f32[P // 2, 2], lives)."""

        def program(setting: Setting):
            def pair(_, item):
                objectives, lives, keys = item

                def candidate(objective, states):
                    def life(key, state):
                        task = setting.tasks(jax.random.fold_in(key, cu.TASK))
                        window = self.config.window
                        state, returned = setting.agent.stretch(objective, task, state, jnp.int32(0), jnp.int32(window))
                        return jnp.where(diverged(state), jnp.nan, as_known(state, returned)), state

                    returned, states = setting.agent.vmap(life)(keys, states)
                    return returned.mean(), states

                return setting.agent.vmap(candidate)(objectives, lives)

            return parallel.sharded_map(pair, chunk=self.problem.chunk, devices=self.devices)

        return [program(setting) for setting in self.problem.settings]

    @cached_property
    def _renewed(self):
        """(lives, newborn, bool[P // 2]) -> lives, some pairs of which are newborn."""

        def renewed(lives, newborn, anew):
            return jax.tree.map(lambda x, y: jnp.where(anew.reshape(-1, *(1,) * (x.ndim - 1)), y, x), lives, newborn)

        return jax.jit(renewed)

    def _perturbation(self, strategy: PyTree, p: jax.Array, drawn: jax.Array) -> jax.Array:
        """f32[D]: that of pair p, drawn in a generation at its sigma."""
        key = jax.random.fold_in(jax.random.fold_in(self.problem.key("ask", 0), drawn), p)
        return self.evolution.sigma(strategy, drawn) * jax.random.normal(key, strategy.mean.shape)

    @cached_property
    def _perturbed(self):
        """(strategy's state, generation, when each pair's perturbation was drawn) -> candidates [P // 2, 2, ...], the state to
        tell."""
        _, unravel = ravel_pytree(self.problem.template)

        def perturbed(strategy, generation, drawn):
            strategy = strategy.replace(std=self.evolution.sigma(strategy, generation))

            def of_pair(p, drawn):
                z = self._perturbation(strategy, p, drawn)
                return jax.vmap(unravel)(jnp.stack([strategy.mean + z, strategy.mean - z]))

            return jax.vmap(of_pair)(jnp.arange(drawn.shape[0]), drawn), strategy

        return jax.jit(perturbed)

    @cached_property
    def _persistent(self):
        """(strategy's state, generation, when each pair's lives began) -> mean + z and mean - z, [P // 2, 2, ...], where

            z_p = sum_g (sigma_p / sigma_g)^2 e_g

        over the perturbations e_g of the generations that the lives of pair p have seen."""
        _, unravel = ravel_pytree(self.problem.template)

        def persistent(strategy, generation, began):
            def of_pair(p, born):
                def add(i, z):
                    drawn = jnp.maximum(generation - i, born)
                    share = (self.evolution.sigma(strategy, born) / self.evolution.sigma(strategy, drawn)) ** 2
                    return z + jnp.where(generation - i >= born, share * self._perturbation(strategy, p, drawn), 0.0)

                z = jax.lax.fori_loop(0, self.windows, add, jnp.zeros_like(strategy.mean))
                return jax.vmap(unravel)(jnp.stack([strategy.mean + z, strategy.mean - z]))

            return jax.vmap(of_pair)(jnp.arange(began.shape[0]), began)

        return jax.jit(persistent)

    def loop_seconds(self, state: RollingState) -> float:
        return Search.loop_seconds(self, state)  # a window is short

    def programs(self, state: RollingState) -> dict[str, tuple[Any, tuple]]:
        began = self.began(0)
        strategy = like(state, to_default_device)(state.strategy)
        population, _ = like(state, self._perturbed)(strategy, jnp.int32(0), self.drawn(0))
        return {
            name: (window, (None, (population, state.lives[e], self._life_keys(e, began))))
            for e, (name, window) in enumerate(zip(self.problem.recipe.envs, self._windows, strict=True))
        }

    def step(self, state: RollingState, generation: int) -> tuple[RollingState, dict[str, Any]]:
        began = self.began(generation)
        anew = (began == generation) & (generation > 0)  # the first are newborn
        before, now = to_default_device(state.strategy), jnp.int32(generation)
        population, strategy = self._perturbed(before, now, self.drawn(generation))
        population = to_default_device(population)
        fitness, lives = [], []
        for e, window in enumerate(self._windows):
            keys, living = self._life_keys(e, began), state.lives[e]
            if anew.any():
                living = self._renewed(living, self._births[e](None, keys), anew)
            with self.problem.on_devices():
                found, after = window(None, (population, living, keys))
            fitness.append(found)
            lives.append(after)
        with self.problem.on_devices():
            fitness = to_default_device(jnp.stack([to_default_device(each) for each in fitness], axis=-1))
        if self.config.estimator == "pes":
            population = to_default_device(self._persistent(strategy, now, began))
        weight = self.weight(generation)[:, None]
        strategy = self._tell(self.problem.key("tell", generation), population, fitness, strategy, weight)
        self.problem.updates += self.taken(generation)
        return RollingState(strategy, tuple(lives)), summarise(fitness, self.problem.recipe.envs)
