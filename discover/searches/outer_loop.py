"""The outer loop of a run: a search, the evaluations of its mean, and the best mean so far, in one pytree of state."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

import learned_objectives as lo
from discover.devices.parallel import to_default_device
from discover.plugins import blame, is_ours
from discover.searches.contract import Contract
from discover.searches.problem import Problem
from discover.searches.programs import ProgramsConfig
from discover.searches.search import checked_search

PyTree = Any


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
    search: PyTree  # the search's own state
    best: lo.Objective  # the mean that is exported: that with the best evaluation so far, or the last one
    best_score: jax.Array  # f32[], see `OuterLoop._keep_best`
    best_generation: jax.Array  # i32[], the generations that mean had seen
    reference: jax.Array  # f32[E], the starting mean's return in each environment
    scale: jax.Array  # f32[E], the size of a difference that matters there


def _refuse_arrays_of_programs(problem: Problem) -> None:
    """ValueError where one of our searches would perturb the operations of an InterpretedProgram."""
    config, drift = problem.recipe.search, getattr(problem.template, "drift", None)
    if isinstance(drift, lo.InterpretedProgram) and is_ours(type(config)) and not isinstance(config, ProgramsConfig):
        raise ValueError(
            f"the objective 'program' is searched by 'programs' (--search programs), and not by {config.kind!r}, which moves "
            "numbers: for the constants of one program, give the objective learned_objectives.Program.parse(text)."
        )


class OuterLoop:
    """A search with all that is the same for every search. A run drives it, and saves its state."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.recipe, self.settings, self.template = problem.recipe, problem.settings, problem.template
        self.available = problem.available
        _refuse_arrays_of_programs(problem)
        with blame(type(problem.recipe.search), "build"):
            built = problem.recipe.search.build(problem)
        self.search = checked_search(built, problem.recipe.search)
        self.contract = None if is_ours(type(self.search)) else Contract(self.search, problem.template)

    def init(self) -> MetaState:
        count = len(self.settings)
        search = self.search.init() if self.contract is None else self.contract.init()
        return MetaState(
            generation=jnp.int32(0),
            updates=Count.of(0),
            search=search,
            best=self.template,
            best_score=jnp.float32(-jnp.inf),
            best_generation=jnp.int32(0),
            reference=jnp.zeros(count),
            scale=jnp.ones(count),
        )

    def generation(self, state: MetaState) -> tuple[MetaState, dict[str, Any]]:
        """One step of the search: (next state, what to log of it)."""
        before = self.problem.updates
        step = self.search.step if self.contract is None else self.contract.step
        search, row = step(state.search, int(state.generation))
        updates = state.updates + (self.problem.updates - before)
        return state.replace(generation=state.generation + 1, updates=updates, search=search), row

    def mean(self, state: MetaState) -> lo.Objective:
        return self.search.mean(state.search) if self.contract is None else self.contract.mean(state.search)

    def describe(self, state: MetaState) -> dict[str, Any]:
        with self._blame("describe"):
            return self.search.describe(state.search, int(state.generation))

    def programs(self, state: MetaState) -> dict[str, tuple[Any, tuple]]:
        with self._blame("programs"):
            return self.search.programs(state.search)

    def loop_seconds(self, state: MetaState) -> float:
        with self._blame("a step"):
            return self.search.loop_seconds(state.search)

    def _blame(self, what: str) -> AbstractContextManager[None]:
        return blame(type(self.search), what)

    @property
    def device_seconds(self) -> float:
        """Spent so far in starting programs of lives and waiting for them."""
        return self.problem.device_seconds

    def env_steps(self, state: MetaState) -> int:
        """Environment steps that agents learned from so far, evaluations included."""
        return int(state.updates) * self.recipe.agent.steps_per_update

    def to_checkpoint(self, state: MetaState) -> MetaState:
        return state.replace(search=self.search.to_checkpoint(state.search))

    def from_checkpoint(self, state: MetaState) -> MetaState:
        return state.replace(search=self.search.from_checkpoint(state.search))

    def placed(self, state: MetaState) -> MetaState:
        search = self.search.placed(state.search)
        return to_default_device(state.replace(search=None)).replace(search=search)

    def evaluate(self, state: MetaState) -> tuple[MetaState, jax.Array]:
        """Lives of the mean: (state with the best mean kept, f32[E, S])."""
        mean, before = to_default_device(self.mean(state)), self.problem.updates
        returns = self.problem.evaluate(mean, int(state.generation))
        state = state.replace(updates=state.updates + (self.problem.updates - before))
        return self._keep_best(state, mean, returns), returns

    @cached_property
    def _keep_best(self):
        any_later = self.recipe.exported == "last"

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
            better = jnp.isfinite(score) & (any_later | (score > best_score))
            new = (mean, score, generation)
            picked = jax.tree.map(lambda a, b: jnp.where(better, a, b), new, (best, best_score, best_generation))
            return (*picked, reference, scale)

        keep = jax.jit(keep)
        names = ("best", "best_score", "best_generation", "reference", "scale")

        def keep_best(state: MetaState, mean, lives) -> MetaState:
            small = (*(vars(state)[name] for name in names), state.generation)
            return state.replace(**dict(zip(names, keep(small, mean, lives), strict=True)))

        return keep_best
