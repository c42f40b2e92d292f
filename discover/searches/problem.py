"""What a search works on: the objective's template, the environments, and lives over devices."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import envs
import learned_objectives as lo
from discover.agents.agent import Agent, AgentState, Task, diverged
from discover.devices import parallel
from discover.devices.parallel import to_default_device
from discover.devices.plan import plan_for
from discover.searches import curriculum as cu
from discover.searches.chunks import with_chunk
from discover.searches.recipe import PURPOSES, Recipe, purpose_key

PyTree = Any

EVALUATION_KEY = 2_000_000_000  # folded into an agent's key, where its updates fold their number
STRETCHES = 10  # equal stretches of a life, at most; its training return is that of the last one
SAMPLE = 256  # tasks whose lifetimes are averaged


class Setting(NamedTuple):
    """One environment of a recipe, ready for lives."""

    agent: Agent
    tasks: cu.Tasks
    episodes: int | None  # fresh ones that a life is judged by; None: by its training return


def life_fitness(setting: Setting, objective: lo.Objective, task: Task, key: jax.Array) -> jax.Array:
    """f32[]: the fitness of one life under an objective; NaN if its agent diverged.

    With `setting.episodes`, the mean return of that many fresh episodes. Otherwise the mean training return at the end of the
    life. If no episode ended, the mean return of the unfinished episodes.
    """
    agent = setting.agent
    if setting.episodes is not None:
        state = live(setting, objective, task, key)
        fitness = final_return(setting, task, state)
    else:
        lives = setting.tasks.lifetimes
        one_length = lives.shortest == lives.longest
        updates = setting.tasks.longest if one_length else cu.num_updates(agent.config, task)
        shortest = lives.shortest // agent.config.steps_per_update
        state, returns = agent.train(objective, task, key, num_updates=updates, num_evals=min(STRETCHES, shortest))
        fitness = as_known(state, returns[-1])
    return jnp.where(diverged(state) | ~jnp.isfinite(fitness), jnp.nan, fitness)


def as_known(state: AgentState, returned: jax.Array) -> jax.Array:
    """A mean training return. If no episode of the life ended, the mean return of the unfinished episodes."""
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
    key = jax.random.fold_in(state.key, EVALUATION_KEY)
    return setting.agent.evaluate(task, state, key, num_episodes=setting.episodes or 64).mean()


class Problem:
    """The objective to search for and the environments to search in. Every search gets one.

    Every key is a function of (seed, purpose, generation, item, life). `device_seconds` and `updates` count on the host what
    programs of lives have taken so far: seconds, and updates of agents.
    """

    def __init__(self, recipe: Recipe, template: lo.Objective | None = None, devices: Sequence[Any] | None = None):
        """`template`: the objective of generation 0, if it is not to be made by the recipe. `devices`: default all.

        Devices of another machine, which JAX can compile for and not run on, are allowed: see `Search.programs`.
        """
        self.recipe = recipe
        self.available = list(devices or jax.devices())
        self.plan = plan_for(self.available)
        self.template = recipe.template() if template is None else template
        self.settings = tuple(self._settings())
        if recipe.search.chunk == "auto":
            fills_cache = any(setting.agent.fills_cache for setting in self.settings)
            self.recipe = with_chunk(recipe, recipe.search.usual_chunk(self.plan, fills_cache=fills_cache))
        chunk = self.recipe.search.chunk
        self.chunk = chunk if isinstance(chunk, int) else None  # items side by side; None: all of a device's share
        self.device_seconds, self.updates = 0.0, 0

    def _settings(self) -> Iterator[Setting]:
        recipe, num_fixed = self.recipe, None
        if recipe.curriculum.kind == "fixed":
            num_fixed = recipe.curriculum.size
        rates = recipe.learning_rates or (recipe.agent.learning_rate,) * len(recipe.envs)
        for name, rate in zip(recipe.envs, rates, strict=True):
            env, _ = envs.make(name)
            agent = Agent.fit(env, recipe.agent, self.template, self.plan)
            tasks = cu.Tasks(
                agent,
                recipe.total_steps,
                rate,
                num_fixed,
                recipe.seed,
                recipe.longest_steps,
                recipe.rate_spread,
                recipe.constant_rates,
            )
            episodes = recipe.fitness_episodes or (None if recipe.total_steps else 64)
            yield Setting(agent, tasks, episodes)

    @contextlib.contextmanager
    def on_devices(self) -> Iterator[None]:
        """Count the time of the block as that of programs of lives, and not of the loop around them."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.device_seconds += time.monotonic() - began

    def key(self, purpose: str, generation: int) -> jax.Array:
        """The key of one purpose in one generation. A user's search has the purposes "start" and "step"."""
        if purpose not in PURPOSES:
            raise ValueError(f"purpose must be 'start' or 'step', and is {purpose!r}.")
        return jax.random.fold_in(purpose_key(self.recipe.seed, purpose), generation)

    @cached_property
    def mean_lengths(self) -> list[float]:
        """Updates in a life, by environment; in the mean over tasks."""
        keys = jax.random.split(jax.random.key(0), SAMPLE)
        return [float(np.mean(lengths(keys))) for lengths in self.lengths]

    @cached_property
    def lengths(self):
        """Per environment: keys [n] of tasks -> i32[n], updates in their lives."""
        return [_lengths_of(setting.tasks) for setting in self.settings]

    @cached_property
    def _held_out_lengths(self):
        return [_lengths_of(held_out(setting)) for setting in self.settings]

    @cached_property
    def lives(self):
        """Per environment: keys shared by all, (groups of objectives, keys of each group) -> f32[G, S].

        The S objectives of a group share their keys. A life's key is also its task's key, so candidates that share a key have
        the same level and lifetime.
        """

        def program(setting: Setting):
            def candidate(objective, keys):
                def life(key):
                    task = setting.tasks(jax.random.fold_in(key, cu.TASK))
                    return life_fitness(setting, objective, task, key)

                return setting.agent.vmap(life)(keys).mean()

            def group(shared_keys, item):
                objectives, group_keys = item
                keys = group_keys if shared_keys is None else shared_keys
                return setting.agent.vmap(lambda objective: candidate(objective, keys))(objectives)

            return parallel.sharded_map(group, chunk=self.chunk, devices=self.available)

        return [program(setting) for setting in self.settings]

    def fitness(
        self,
        candidates: PyTree,
        key: jax.Array,
        *,
        lives: int = 1,
        shared_keys: str = "population",
        environments: Sequence[int] | None = None,
    ) -> jax.Array:
        """f32[G, S, E]: the fitness of each of G x S candidates in each environment; NaN where an agent diverged.

        Args:
          candidates: objectives with leaves [G, S, ...]. A search without pairs or groups of another kind has S = 1.
          key: of this generation. Lives and tasks are functions of it.
          lives: agents trained per candidate and environment, each from another key; their mean counts.
          shared_keys: "population": all candidates have the same tasks and random keys; "group": those of a group do.
          environments: the places in the recipe of those to train in, E of them. Default: all.

        Raises ValueError for candidates of another form, and for another key or number of lives.
        """
        groups, members = self._groups_of(candidates)
        _require_lives(key, lives, shared_keys)
        fitness = []
        for e in range(len(self.lives)) if environments is None else environments:
            program = self.lives[e]
            shape = (lives,) if shared_keys == "population" else (groups, lives)
            keys = jax.random.split(jax.random.fold_in(key, e), shape)
            task_keys = jax.vmap(lambda k: jax.random.fold_in(k, cu.TASK))(keys.reshape(-1))
            lengths = np.asarray(self.lengths[e](task_keys)).reshape(shape)
            self.updates += int(lengths.sum()) * members * (groups if lengths.ndim == 1 else 1)
            with self.on_devices():
                if shared_keys == "population":
                    fitness.append(program(keys, (candidates, None)))
                else:
                    longest = lengths.max(-1)
                    fitness.append(
                        map_balanced(program, None, (candidates, keys), longest, self.chunk, len(self.available))
                    )
        with self.on_devices():
            return to_default_device(jnp.stack(fitness, axis=-1))

    def _groups_of(self, candidates: PyTree) -> tuple[int, int]:
        """(G, S) of candidates. ValueError where they are no stack of objectives like the template."""
        expected = "candidates must be objectives of the structure of problem.template with leaves [G, S, ...]"
        if jax.tree.structure(candidates) != jax.tree.structure(self.template):
            kind, wanted = type(candidates).__name__, type(self.template).__name__
            found = (
                f"are an instance of {kind}, not of {wanted}" if kind != wanted else f"are a {kind} with other settings"
            )
            raise ValueError(f"{expected}, and {found}: make them from the template by jax.tree.map.")
        sizes = None
        for (path, like), x in zip(
            jax.tree_util.tree_leaves_with_path(self.template), jax.tree.leaves(candidates), strict=True
        ):
            shape, form = tuple(np.shape(x)), ", ".join(("G", "S", *map(str, np.shape(like))))
            at = jax.tree_util.keystr(path).lstrip(".")
            if len(shape) < 2 or shape[2:] != tuple(np.shape(like)):
                raise ValueError(f"{expected}, and the leaf {at}, which must be [{form}], is {list(shape)}.")
            if 0 in shape[:2] or (sizes is not None and shape[:2] != sizes):
                before = "" if sizes is None else f", after leaves with [G, S] = {list(sizes)}"
                raise ValueError(f"{expected}, and the leaf {at} is {list(shape)}{before}.")
            sizes = shape[:2]
        if sizes is None:
            raise ValueError(f"{expected}, and they have no leaves.")
        return sizes

    def programs(
        self, candidates: int | PyTree, *, lives: int = 1, shared_keys: str = "population", abstract: bool = False
    ) -> dict[str, tuple[Any, tuple]]:
        """The programs of `fitness` by environment: (program, arguments). `candidates`: as there, or their number."""
        if isinstance(candidates, int):
            stack = lambda x: jnp.broadcast_to(x, (candidates, 1, *jnp.shape(x)))
            build = lambda: jax.tree.map(stack, self.template)
            candidates = jax.eval_shape(build) if abstract else build()
        groups, _ = self._groups_of(candidates)
        shared = shared_keys == "population"
        keys = jax.random.split(self.key("life", 0), (lives,) if shared else (groups, lives))
        arguments = (keys, (candidates, None)) if shared else (None, (candidates, keys))
        return {name: (program, arguments) for name, program in zip(self.recipe.envs, self.lives, strict=True)}

    @cached_property
    def _evaluations(self):
        """Per environment: objective, keys [S] of tasks and lives -> f32[S]."""
        chunk = self.recipe.search.evaluation_chunk(self.plan)

        def program(setting: Setting):
            unseen = held_out(setting)

            def life(objective, keys):
                task_key, life_key = keys
                return life_fitness(setting, objective, unseen(task_key), life_key)

            return parallel.sharded_map(life, chunk=chunk, devices=self.available)

        return [program(setting) for setting in self.settings]

    def evaluate(self, objective: lo.Objective, generation: int) -> jax.Array:
        """f32[E, S]: returns of lives of one objective, on keys that no candidate of the search had.

        The tasks are the same at every evaluation, the lives are not.
        """
        seeds, chunk = self.recipe.evaluation_seeds, self.recipe.search.evaluation_chunk(self.plan)
        life_key, task_key = self.key("evaluation", generation), purpose_key(self.recipe.seed, "level")
        returns = []
        for e, evaluation in enumerate(self._evaluations):
            keys = jax.random.split(jax.random.fold_in(life_key, e), seeds)
            task_keys = jax.random.split(jax.random.fold_in(task_key, e), seeds)
            lengths = np.asarray(self._held_out_lengths[e](task_keys))
            self.updates += int(lengths.sum())
            with self.on_devices():
                returns.append(
                    map_balanced(evaluation, objective, (task_keys, keys), lengths, chunk, len(self.available))
                )
        with self.on_devices():
            return to_default_device(jnp.stack(returns))


def _require_lives(key: Any, lives: int, shared_keys: str) -> None:
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()):
        raise ValueError(f"key must be one key, such as problem.key('step', generation), and is {key!r}.")
    if not isinstance(lives, int | np.integer) or lives < 1:
        raise ValueError(f"lives must be a whole number, at least 1, and is {lives!r}.")
    if shared_keys not in ("population", "group"):
        raise ValueError(f"shared_keys must be 'population' or 'group', and is {shared_keys!r}.")


def map_balanced(
    program, shared: PyTree, items: PyTree, cost: np.ndarray, chunk: int | None, num_devices: int
) -> jax.Array:
    """`program`, made by `sharded_map` for `num_devices`, over items whose costs differ."""
    if (cost == cost[0]).all():
        return program(shared, items)
    order = parallel.balance(cost, chunk, num_devices)
    outs = to_default_device(program(shared, jax.tree.map(lambda x: x[order], items)))
    return jnp.zeros((len(cost), *outs.shape[1:]), outs.dtype).at[order].set(outs)
