"""The search by population-based training: lives that roll on, and copy one another."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

import learned_objectives as lo
from discover.agents.agent import AgentState, diverged
from discover.agents.objectives import as_arrays
from discover.devices import parallel
from discover.devices.parallel import to_default_device
from discover.formats import number
from discover.searches import pbt
from discover.searches.evolution_search import summarise
from discover.searches.lineage import logged_population
from discover.searches.pbt import PBTConfig
from discover.searches.problem import Problem, Setting, as_known
from discover.searches.search import Search

PyTree = Any


class PBTState(struct.PyTreeNode):
    """Of a population in the middle of its training."""

    objectives: lo.Objective  # leaves [P, ...]
    rates: jax.Array  # f32[P], by which the learning rate of each environment is multiplied
    lives: tuple[AgentState, ...]  # by environment, leaves [P, ...]
    returns: jax.Array  # f32[P, E], smoothed; NaN before the first interval, and where an agent diverged
    best: jax.Array  # i32[], the member with the highest score


class PBTSearch(Search):
    """Population-based training of agents and of the objectives and learning rates that they learn with.

    A step is an interval of updates of every member. After it, members are ranked by their smoothed mean return, in each
    environment, and their score is the mean rank. A member of the worst share copies a random one of the best share (exploit):
    agents with their optimizers and environments, objective and learning rate. It then perturbs the last two (explore):

        leaves <- leaves + sigma z    or    leaves e^(sigma z),    rate <- rate * rate_factor^(+-1)

    A copy keeps the random keys of its own place, so that it parts from its source. All members have the same task. When their
    lives end, all agents are born anew, and objectives, rates and smoothed returns stay. Member 0 begins with the template and
    with the learning rate of the environment.

    The objective of the search is that of the member with the highest score. Its learning rate is in the log (`best_rate`) and
    not in the exported file, and evaluations of the run use the learning rate of the environment.
    """

    def __init__(self, config: PBTConfig, problem: Problem):
        super().__init__(config, problem)
        recipe = problem.recipe
        if recipe.curriculum.kind == "plr":
            raise ValueError(
                "curriculum.kind 'plr' replays tasks between the windows of a meta-gradient; with population-based training "
                "choose 'uniform' or 'fixed'."
            )
        if recipe.total_steps is None or recipe.longest_steps is not None:
            raise ValueError(
                "population-based training needs lives of one length: give total_steps and no longest_steps."
            )
        if recipe.rate_spread != 1 or recipe.constant_rates != 0:
            raise ValueError(
                "in population-based training each member has a learning rate of its own: give search.rate_spread, and leave out "
                "rate_spread and constant_rates."
            )
        chunk = problem.chunk or config.items
        if config.items % chunk:
            raise ValueError(
                f"in population-based training chunk must divide the {config.items} members, and is {problem.chunk}."
            )
        self.devices = parallel.devices_for(config.items // chunk, problem.available)
        self.length = problem.settings[0].tasks.longest  # updates in a life
        self.intervals = -(-self.length // config.interval)  # in a life

    def init(self) -> PBTState:
        objectives, rates = self._start(as_arrays(self.problem.template), self.problem.key("start", 0))
        lives = tuple(self._born(0))
        shape = self.config.population, len(self.problem.settings)
        return PBTState(objectives, rates, lives, jnp.full(shape, jnp.nan, jnp.float32), jnp.int32(0))

    def mean(self, state: PBTState) -> lo.Objective:
        return jax.tree.map(lambda x: x[state.best], state.objectives)

    def describe(self, state: PBTState, generation: int) -> dict[str, Any]:
        best = int(state.best)
        return super().describe(state, generation) | {"best_member": best, "best_rate": number(state.rates[best])}

    def placed(self, state: PBTState) -> PBTState:
        lives = tuple(parallel.shard(each, self.devices) for each in state.lives)
        return to_default_device(state.replace(lives=())).replace(lives=lives)

    @property
    def updates_per_step(self) -> float:
        return float(self.config.population * self.config.interval * len(self.problem.settings))

    @cached_property
    def _start(self):
        """(template, key) -> (objectives [P, ...], rates f32[P]) of generation 0."""
        c = self.config

        def start(template, key):
            def member(p):
                leaf_key, rate_key = jax.random.split(jax.random.fold_in(key, p))
                drawn = pbt.explored(leaf_key, template, kind=c.perturbation, sigma=c.start_sigma)
                rate = c.rate_spread ** jax.random.uniform(rate_key, minval=-1.0, maxval=1.0)
                return jax.tree.map(lambda x, y: jnp.where(p == 0, x, y), (template, jnp.float32(1.0)), (drawn, rate))

            return jax.vmap(member)(jnp.arange(c.population))

        return jax.jit(start)

    def _keys(self, e: int, life: int) -> tuple[jax.Array, jax.Array]:
        """(the key of the task, keys [P] of agents) of a life, numbered from 0, in environment number e."""
        task_key, life_key = jax.random.split(jax.random.fold_in(self.problem.key("life", life), e))
        return task_key, jax.random.split(life_key, self.config.population)

    def _born(self, life: int) -> list[AgentState]:
        """Newborn agents [P, ...] by environment."""
        return [born(*self._keys(e, life)) for e, born in enumerate(self._births)]

    @cached_property
    def _births(self):
        """Per environment: (key of the task, keys [P]) -> newborn agents [P, ...]."""

        def program(setting: Setting):
            def born(task_key, key):
                return setting.agent.init(setting.tasks(task_key), key)

            return parallel.sharded_map(born, chunk=self.problem.chunk, devices=self.devices)

        return [program(setting) for setting in self.problem.settings]

    @cached_property
    def _intervals(self):
        """Per environment: (key of the task, (objectives, rates, agents) [P, ...]) -> (f32[P], agents after an interval)."""

        def program(setting: Setting):
            def interval(task_key, member):
                objective, rate, state = member
                task = setting.tasks(task_key)
                task = task.replace(learning_rate=rate * setting.tasks.learning_rate)
                stop = jnp.int32(self.config.interval)
                state, returned = setting.agent.stretch(objective, task, state, jnp.int32(0), stop)
                return jnp.where(diverged(state), jnp.nan, as_known(state, returned)), state

            return parallel.sharded_map(interval, chunk=self.problem.chunk, devices=self.devices)

        return [program(setting) for setting in self.problem.settings]

    @cached_property
    def _selected(self):
        """(smoothed returns before, returns of the interval f32[P, E], key) -> (smoothed returns, scores, sources i32[P])."""
        c = self.config

        def selected(before, returned, key):
            returns = pbt.smoothed(before, returned, weight=c.smoothing)
            score = pbt.scores(returns)
            return returns, score, pbt.exploited(key, score, copies=c.copies)

        return jax.jit(selected)

    @cached_property
    def _explored(self):
        """(objectives, rates, smoothed returns, sources i32[P], key) -> the first three of the next step."""
        c = self.config

        def explored(objectives, rates, returns, source, key):
            objectives, rates, returns = jax.tree.map(lambda x: x[source], (objectives, rates, returns))

            def member(p, objective, rate):
                leaf_key, rate_key = jax.random.split(jax.random.fold_in(key, p))
                leaves = pbt.explored(leaf_key, objective, kind=c.perturbation, sigma=c.sigma)
                factor = jnp.where(jax.random.bernoulli(rate_key), c.rate_factor, 1.0 / c.rate_factor)
                moved = (leaves, rate * factor)
                return jax.tree.map(lambda x, y: jnp.where(source[p] == p, x, y), (objective, rate), moved)

            objectives, rates = jax.vmap(member)(jnp.arange(c.population), objectives, rates)
            return objectives, rates, returns

        return jax.jit(explored)

    def programs(self, state: PBTState) -> dict[str, tuple[Any, tuple]]:
        return {
            name: (program, (self._keys(e, 0)[0], (state.objectives, state.rates, state.lives[e])))
            for e, (name, program) in enumerate(zip(self.problem.recipe.envs, self._intervals, strict=True))
        }

    def step(self, state: PBTState, generation: int) -> tuple[PBTState, dict[str, Any]]:
        c, key, names = self.config, self.problem.key, self.problem.recipe.envs
        life, interval = divmod(generation, self.intervals)
        lives = self._born(life) if interval == 0 and life > 0 else list(state.lives)
        returned = []
        for e, program in enumerate(self._intervals):
            with self.problem.on_devices():
                found, lives[e] = program(self._keys(e, life)[0], (state.objectives, state.rates, lives[e]))
            returned.append(found)
        with self.problem.on_devices():
            returned = jnp.stack([to_default_device(each) for each in returned], axis=-1)
        returns, score, source = self._selected(state.returns, returned, key("tell", generation))
        row = logged_population(
            state.objectives, state.rates, returned=returned, score=score, source=source, names=names
        )
        if (moved := np.asarray(source) != np.arange(c.population)).any():
            lives = [parallel.take(each, source, devices=self.devices).replace(key=each.key) for each in lives]
        objectives, rates, returns = self._explored(
            state.objectives, state.rates, returns, source, key("ask", generation)
        )
        self.problem.updates += min(c.interval, self.length - interval * c.interval) * c.population * len(names)
        state = PBTState(objectives, rates, tuple(lives), returns, jnp.argmax(score).astype(jnp.int32))
        return state, summarise(returned[:, None], names) | {"copied": int(moved.sum()), "population": row}
