"""The contract of a user's search, checked where it is used: states keep their form, logs are JSON, and means have the form
of the template."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import learned_objectives as lo
from discover.plugins import blame
from discover.searches.search import Search
from envs import plugs

PyTree = Any

# Fields of a row of metrics.jsonl that the run writes.
RESERVED = {
    "generation",
    "env_steps",
    "evaluation",
    "best_score",
    "mean_norm",
    "fitness",
    "meta",
    "seconds",
    "loop_seconds",
}
RESERVED |= {"steps_per_second", "depends_on", "diverged", "sigma"}


class Contract:
    """A user's search, with every mistake in one sentence. Raises ValueError when it is made, if `init` or `mean` is wrong."""

    def __init__(self, search: Search, template: lo.Objective):
        self.search, self.name = search, type(search).__name__
        self.where = plugs.where(search)
        self.form = jax.eval_shape(self.init)
        self.template = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, template))
        jax.eval_shape(self.mean, self.form)

    def init(self) -> PyTree:
        with blame(type(self.search), "init"):
            state = self.search.init()
        return jax.tree_util.tree_map_with_path(self._array, state)

    def step(self, state: PyTree, generation: int) -> tuple[PyTree, dict[str, Any]]:
        with blame(type(self.search), "step"):
            found = self.search.step(state, generation)
        if not (isinstance(found, tuple) and len(found) == 2):
            raise self._error("step must return (next state, what to log)", f"returned {type(found).__name__}")
        state = self._like(self.form, found[0], "the state that step returns", "the state that init returns")
        return state, self._row(found[1])

    def mean(self, state: PyTree) -> lo.Objective:
        with blame(type(self.search), "mean"):
            found = self.search.mean(state)
        return self._like(self.template, found, "what mean returns", "problem.template")

    def _array(self, path: Any, x: Any) -> jax.Array:
        try:
            return jnp.asarray(x)
        except TypeError:
            at = jax.tree_util.keystr(path)
            raise self._error(f"the leaf {at} of the state that init returns must be an array", f"is {x!r}") from None

    def _like(self, form: PyTree, found: PyTree, what: str, model: str) -> PyTree:
        """`found` as arrays with the types of `form`. `model` names the object that has this form.

        ValueError where structure, shape or type differ.
        """
        if jax.tree.structure(found) != jax.tree.structure(form):
            raise self._error(f"{what} must have the structure of {model}", _difference(form, found))

        def one(path, like, x):
            x = self._array(path, x)
            if x.shape != like.shape or (x.dtype != like.dtype and not jnp.can_cast(x.dtype, like.dtype)):
                at = jax.tree_util.keystr(path)
                raise self._error(
                    f"the leaf {at} of {what} must be {like.dtype}{list(like.shape)}", f"is {x.dtype}{list(x.shape)}"
                )
            return x if x.dtype == like.dtype else x.astype(like.dtype)

        return jax.tree_util.tree_map_with_path(one, form, found)

    def _row(self, row: Any) -> dict[str, Any]:
        if not isinstance(row, dict) or not all(isinstance(name, str) for name in row):
            raise self._error("what step logs must be a dictionary with names as keys", f"is {row!r}")
        if taken := sorted(RESERVED & row.keys()):
            raise self._error(
                "what step logs must not have the names that a run writes itself", f"has {', '.join(taken)}"
            )
        return {name: self._value(name, value) for name, value in row.items()}

    def _value(self, name: str, value: Any) -> Any:
        """A number, a word, or None for a number that is not finite."""
        if isinstance(value, str | bool | None):
            return value
        if isinstance(value, jax.Array | np.generic | np.ndarray) and np.shape(value) == ():
            value = np.asarray(value).item()
        if isinstance(value, bool | int):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        raise self._error(
            f"the value of {name!r} that step logs must be a number or a string", f"is {type(value).__name__}"
        )

    def _error(self, expected: str, found: str) -> ValueError:
        return ValueError(f"{self.name}: {expected}, and {found} ({self.where}).")


def _difference(form: PyTree, found: PyTree) -> str:
    """How the structure of `found` differs: "is an instance of Clip, not of Mirror", "lacks the leaf .drift.weight"."""
    if type(form) is not type(found):
        wanted = type(form).__name__
        return (
            f"is None, not {wanted}" if found is None else f"is an instance of {type(found).__name__}, not of {wanted}"
        )
    wanted, has = (
        [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)] for tree in (form, found)
    )
    for verb, more, fewer in (("lacks", wanted, has), ("also has", has, wanted)):
        if other := [path for path in more if path not in fewer]:
            return f"{verb} the leaf {other[0]}"
    return "has the same leaves in other classes, or other static fields"
