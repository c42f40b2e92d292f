"""The contract of an outer loop: a frozen config, and a search with `init`, `step` and `mean`.

    @dataclass(frozen=True)
    class Climb(SearchConfig):
        population: int = 16  # candidates of a step

        @property
        def items(self):
            return self.population

        def build(self, problem):
            return Climber(self, problem)

`Recipe.search` holds such a config. Its fields are flags of the command line, `--search.population`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax

import learned_objectives as lo
from discover.devices.parallel import to_default_device
from discover.formats import number
from discover.plugins import shown
from discover.searches.problem import Problem
from envs import plugs

PyTree = Any


class Search:
    """An outer loop over the objective of a problem. Subclasses write `init`, `step` and `mean`; the rest has defaults.

    A state is a pytree of arrays, so that a run can save it without knowing what it is. All randomness comes from
    `self.problem.key(purpose, generation)`, so a resumed run continues as the uninterrupted one.
    """

    def __init__(self, config: Any, problem: Problem):
        self.config, self.problem = config, problem

    def init(self) -> PyTree:
        """The state before the first step. It must be traceable by JAX (`jax.eval_shape`)."""
        raise NotImplementedError

    def step(self, state: PyTree, generation: int) -> tuple[PyTree, dict[str, Any]]:
        """One step, number `generation` from 0: (next state, what to log of it). What is logged must be JSON."""
        raise NotImplementedError

    def mean(self, state: PyTree) -> lo.Objective:
        """The current objective, in the structure of `self.problem.template`: what a run evaluates and exports."""
        raise NotImplementedError

    def describe(self, state: PyTree, generation: int) -> dict[str, Any]:
        """What to log of the state itself."""
        return {"mean_norm": number(optax.tree.norm(self.mean(state)))}

    def programs(self, state: PyTree) -> dict[str, tuple[Any, tuple]]:
        """The programs that take most of a step, by name: (program, arguments). For their memory and their time.

        Of a state of shapes, as `jax.eval_shape` gives, the arguments are shapes too, and nothing is run.
        """
        return self.problem.programs(self.config.items, abstract=is_abstract(state))

    @property
    def updates_per_step(self) -> float:
        """Updates of all agents in a step, expected."""
        return self.config.items * self.config.lives_per_item * sum(self.problem.mean_lengths)

    def to_checkpoint(self, state: PyTree) -> PyTree:
        """A state of host arrays as a checkpoint holds it, which does not depend on the chunk."""
        return state

    def from_checkpoint(self, state: PyTree) -> PyTree:
        """The inverse of `to_checkpoint`, with this search's chunk."""
        return state

    def placed(self, state: PyTree) -> PyTree:
        """A state from a checkpoint, on the devices that `step` expects it on."""
        return to_default_device(state)

    def loop_seconds(self, state: PyTree) -> float:
        """Seconds of a step that the loop around the programs of lives takes. Runs two steps, the first of which compiles."""
        for _ in range(2):
            began, waited = time.monotonic(), self.problem.device_seconds
            jax.block_until_ready(self.step(state, 0))
            own = time.monotonic() - began - (self.problem.device_seconds - waited)
        return own


def is_abstract(state: PyTree) -> bool:
    """Whether the leaves of a state are shapes."""
    return any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(state))


def like(state: PyTree, fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """`fn`; or, where the leaves of `state` are shapes, what `fn` would return as shapes."""
    return partial(jax.eval_shape, fn) if is_abstract(state) else fn


def checked_search(search: Any, config: Any) -> Search:
    """What a config has built, if it is a search with all that a search must have; ValueError in a sentence otherwise."""
    if not isinstance(search, Search):
        raise ValueError(f"build must return a discover.Search, and returned {shown(search)} ({plugs.where(config)}).")
    missing = [name for name in ("init", "step", "mean") if getattr(type(search), name) is getattr(Search, name)]
    if missing:
        raise ValueError(f"{type(search).__name__} lacks {' and '.join(missing)} ({plugs.where(search)}).")
    return search
