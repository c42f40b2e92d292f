"""What every search has, by evolution or by meta-gradient: one pytree of state, evaluations of its mean, the best mean so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

import envs
import learned_objectives as lo
from discover import curriculum as cu
from discover import parallel
from discover.agent import Agent, AgentState, Task, diverged
from discover.chunks import chunk_of, usual_chunk, with_chunk
from discover.parallel import free
from discover.plan import plan_for
from discover.recipe import Recipe, purpose_key
from discover.record import number

PyTree = Any

JUDGEMENT = 2_000_000_000  # folded into an agent's key, where its updates fold their number
STRETCHES = 10  # a life's training return is that of the last of so many equal stretches


class Count(struct.PyTreeNode):
    """A whole number from 0 to 2^61 - 1 in two int32 arrays: high * 2^30 + low. It is added to on the host.

    JAX has no int64 without `jax_enable_x64`, and the updates of all agents in a search exceed int32.
    """

    high: jax.Array  # i32[]
    low: jax.Array  # i32[], below 2^30

    @classmethod
    def of(cls, number: int) -> Count:
        return cls(jnp.asarray(number >> 30, jnp.int32), jnp.asarray(number & (2**30 - 1), jnp.int32))

    def __int__(self) -> int:
        return (int(self.high) << 30) + int(self.low)

    def __add__(self, more: int) -> Count:
        return Count.of(int(self) + int(more))


class MetaState(struct.PyTreeNode):
    """All that a run carries from one step to the next. Arrays only."""

    generation: jax.Array  # i32[], steps of the search done: generations, or meta-gradients
    updates: Count  # of agents, evaluations included
    search: PyTree  # the strategy's state, or a GradientState
    best: lo.Objective  # the mean with the best evaluation so far
    best_score: jax.Array  # f32[], see `Search._keep_best`
    best_generation: jax.Array  # i32[], the generations that mean had seen
    reference: jax.Array  # f32[E], the starting mean's return in each environment
    scale: jax.Array  # f32[E], the size of a difference that matters there


class Setting(NamedTuple):
    """One environment of a recipe, ready for lives."""

    agent: Agent
    tasks: cu.Tasks
    episodes: int | None  # fresh ones that a life is judged by; None: by its training return


def life_fitness(setting: Setting, objective: lo.Objective, task: Task, key: jax.Array) -> jax.Array:
    """f32[]: what one life under an objective comes to; NaN if its agent diverged.

    Its mean training return at the end, in a life too short for any episode to end that of those in play; or its mean return
    over so many fresh episodes.
    """
    agent = setting.agent
    if setting.episodes is not None:
        state = live(setting, objective, task, key)
        fitness = final_return(setting, task, state)
    else:
        updates = setting.tasks.longest  # all lives are of one length
        state, returns = agent.train(objective, task, key, num_updates=updates, num_evals=min(STRETCHES, updates))
        fitness = as_known(state, returns[-1])
    return jnp.where(diverged(state) | ~jnp.isfinite(fitness), jnp.nan, fitness)


def like(state: PyTree, fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """`fn`; or, where the leaves of `state` are shapes, what `fn` would return as shapes."""
    abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(state))
    return partial(jax.eval_shape, fn) if abstract else fn


def as_known(state: AgentState, returned: jax.Array) -> jax.Array:
    """A mean training return; that of the episodes in play where none has ever ended."""
    return jnp.where(jnp.isnan(returned), state.env.episodes.running.mean(), returned)


def held_out(setting: Setting) -> cu.Tasks:
    """Where the mean is evaluated: not among the fixed tasks that it learns from."""
    return replace(setting.tasks, num_fixed=None)


def _lengths_of(tasks: cu.Tasks):
    return jax.jit(jax.vmap(lambda key: cu.num_updates(tasks.agent.config, tasks(key))))


def live(setting: Setting, objective: lo.Objective, task: Task, key: jax.Array) -> AgentState:
    """The agent at the end of its own lifetime; side by side with others, all run until the longest ends."""
    updates = cu.num_updates(setting.agent.config, task)
    return setting.agent.train(objective, task, key, num_updates=updates)[0]


def final_return(setting: Setting, task: Task, state: AgentState) -> jax.Array:
    """f32[]: the mean return of fresh episodes, on a key of the agent's own that no update uses."""
    key = jax.random.fold_in(state.key, JUDGEMENT)
    return setting.agent.evaluate(task, state, key, num_episodes=setting.episodes or 64).mean()


class Search:
    """What every search has: its environments, evaluations of its mean, and the best mean so far.

    Every key is a function of (seed, purpose, generation, pair or member, life).
    """

    def __init__(self, recipe: Recipe, template: lo.Objective | None = None, devices: Sequence[Any] | None = None):
        """`template`: the objective of generation 0, if it is not to be made by the recipe. `devices`: default all.

        Devices of another machine, which JAX can compile for and not run on, are allowed: see `programs`.
        """
        self.recipe = recipe
        self.available = list(devices or jax.devices())
        self.plan = plan_for(self.available)
        self.template = recipe.template() if template is None else template
        self.settings = tuple(self._settings())
        if chunk_of(recipe) == "auto":
            fills_cache = any(setting.agent.fills_cache for setting in self.settings)
            self.recipe = with_chunk(recipe, usual_chunk(recipe, self.plan, fills_cache=fills_cache))
        chunk = chunk_of(self.recipe)
        # Pairs or members side by side; None: all of a device's share.
        self.chunk = chunk if isinstance(chunk, int) else None

    def _settings(self):
        recipe, num_fixed = self.recipe, None
        if recipe.curriculum.kind == "fixed":
            num_fixed = recipe.curriculum.size
        rates = recipe.learning_rates or (recipe.agent.learning_rate,) * len(recipe.envs)
        for name, rate in zip(recipe.envs, rates, strict=True):
            env, _ = envs.make(name)
            agent = Agent.fit(env, recipe.agent, self.template, self.plan)
            tasks = cu.Tasks(agent, recipe.total_steps, rate, num_fixed, recipe.seed)
            episodes = recipe.fitness_episodes or (None if recipe.total_steps else 64)
            yield Setting(agent, tasks, episodes)

    def init(self) -> MetaState:
        count = len(self.settings)
        return MetaState(
            generation=jnp.int32(0),
            updates=Count.of(0),
            search=self.start(),
            best=self.template,
            best_score=jnp.float32(-jnp.inf),
            best_generation=jnp.int32(0),
            reference=jnp.zeros(count),
            scale=jnp.ones(count),
        )

    def start(self) -> PyTree:
        """The search's own state before its first step."""
        raise NotImplementedError

    def generation(self, state: MetaState) -> tuple[MetaState, dict[str, Any]]:
        """One step: (next state, what to log of it)."""
        raise NotImplementedError

    def programs(self, state: MetaState) -> dict[str, tuple[Any, tuple]]:
        """What a step mostly runs, by name: (program, arguments). For a look at its memory and time.

        Of a state of shapes, as `jax.eval_shape(search.init)` gives, the arguments are shapes too, and nothing is run.
        """
        raise NotImplementedError

    def mean(self, state: MetaState) -> lo.Objective:
        """The objective that the search has come to."""
        raise NotImplementedError

    def describe(self, state: MetaState) -> dict[str, Any]:
        """What to log of the search itself."""
        return {"mean_norm": number(optax.tree.norm(self.mean(state)))}

    def to_checkpoint(self, state: MetaState) -> MetaState:
        """A state of host arrays as a checkpoint holds it, which does not depend on the chunk."""
        return state

    def from_checkpoint(self, state: MetaState) -> MetaState:
        """The inverse of `to_checkpoint`, with this search's chunk."""
        return state

    def placed(self, state: MetaState) -> MetaState:
        """A state from a checkpoint, on the devices that `generation` expects it on."""
        return free(state)

    def _key(self, purpose: str, generation: int) -> jax.Array:
        return jax.random.fold_in(purpose_key(self.recipe.seed, purpose), generation)

    def env_steps(self, state: MetaState) -> int:
        """Environment steps that agents learned from so far, evaluations included."""
        return int(state.updates) * self.recipe.agent.steps_per_update

    @property
    def evaluation_chunk(self) -> int | None:
        """Lives of an evaluation that a device trains side by side."""
        chunk = self.recipe.evolution.chunk
        return (self.plan.chunk if self.recipe.method == "metagrad" else None) if chunk == "auto" else chunk

    @cached_property
    def _lengths(self):
        """Per environment: keys [n] of tasks -> i32[n], updates in their lives."""

        return [_lengths_of(setting.tasks) for setting in self.settings]

    @cached_property
    def _held_out_lengths(self):
        return [_lengths_of(held_out(setting)) for setting in self.settings]

    @cached_property
    def _evaluations(self):
        """Per environment: objective, keys [S] of tasks and lives -> f32[S]."""

        def program(setting: Setting):
            unseen = held_out(setting)

            def life(objective, keys):
                task_key, life_key = keys
                return life_fitness(setting, objective, unseen(task_key), life_key)

            return parallel.spread(life, chunk=self.evaluation_chunk, devices=self.available)

        return [program(setting) for setting in self.settings]

    def evaluate(self, state: MetaState) -> tuple[MetaState, jax.Array]:
        """Lives of the mean itself, on keys that the search has not met: (state with the best mean kept, f32[E, S]).

        The tasks are the same at every evaluation, the lives are not.
        """
        mean, seeds = free(self.mean(state)), self.recipe.evaluation_seeds
        life_key, task_key = self._key("evaluation", int(state.generation)), purpose_key(self.recipe.seed, "level")
        returns, updates = [], 0
        for e, evaluation in enumerate(self._evaluations):
            keys = jax.random.split(jax.random.fold_in(life_key, e), seeds)
            task_keys = jax.random.split(jax.random.fold_in(task_key, e), seeds)
            lengths = np.asarray(self._held_out_lengths[e](task_keys))
            updates += int(lengths.sum())
            returns.append(
                dealt(evaluation, mean, (task_keys, keys), lengths, self.evaluation_chunk, len(self.available))
            )
        returns = free(jnp.stack(returns))
        state = state.replace(updates=state.updates + updates)
        return self._keep_best(state, mean, returns), returns

    @cached_property
    def _keep_best(self):
        def keep(small, mean, lives):
            best, best_score, best_generation, reference, scale, generation = small
            returns, finite = lives.mean(-1), jnp.isfinite(lives)
            start = jnp.where(finite, lives, 0.0).sum(-1) / jnp.maximum(finite.sum(-1), 1)
            spread = jnp.sqrt(jnp.where(finite, (lives - start[:, None]) ** 2, 0.0).mean(-1))
            first = generation == 0
            reference = jnp.where(first, start, reference)
            scale = jnp.where(first, jnp.maximum(jnp.maximum(jnp.abs(start), spread), 1e-3), scale)
            # How far from the starting mean, in units of its return there. Gains are bounded, losses are not: an environment
            # that the start had hardly learned must not outweigh the others. A mean under which a life diverged is never
            # the best.
            change = (returns - reference) / scale
            score = (change / (1.0 + jnp.maximum(change, 0.0))).mean()
            better = jnp.isfinite(score) & (score > best_score)
            new = (mean, score, generation)
            picked = jax.tree.map(lambda a, b: jnp.where(better, a, b), new, (best, best_score, best_generation))
            return (*picked, reference, scale)

        keep = jax.jit(keep)
        names = ("best", "best_score", "best_generation", "reference", "scale")

        def keep_best(state: MetaState, mean, lives) -> MetaState:
            small = (*(getattr(state, name) for name in names), state.generation)
            return state.replace(**dict(zip(names, keep(small, mean, lives), strict=True)))

        return keep_best


def dealt(program, shared: PyTree, items: PyTree, cost: np.ndarray, chunk: int | None, num_devices: int) -> jax.Array:
    """`program`, made by `spread` for so many devices, over items whose costs differ."""
    if (cost == cost[0]).all():
        return program(shared, items)
    order = parallel.deal(cost, chunk, num_devices)
    outs = free(program(shared, jax.tree.map(lambda x: x[order], items)))
    return jnp.zeros((len(cost), *outs.shape[1:]), outs.dtype).at[order].set(outs)
