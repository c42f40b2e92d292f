"""The suite Jumanji (Bonnet et al. 2024, arXiv:2306.09884): puzzles, packing and routing, most of them with action masks."""

# pyright: reportMissingImports=false
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jumanji
import numpy as np
from gymnax.environments.spaces import Box, Discrete
from jumanji import specs

from envs.spaces import MultiDiscrete
from envs.suites.adapter import NEVER, Adapter

UNLIMITED = 100_000  # steps: the time limit of tasks that have none, and end in fewer
CLASSES = 32  # integers with at most so many values are one-hot
EXPENSIVE = (  # resets that generate mazes, graphs or boxes, or shuffle step by step
    *("BinPack", "Cleaner", "FlatPack", "MMST", "Maze"),
    *("RubiksCube", "RubiksCube-partly-scrambled", "SlidingTilePuzzle"),
)
EXPONENTS = {"Game2048": {"board": (0, 17)}}  # bounds that a spec leaves out: 2^17 is the largest tile on 4 x 4 cells


class Jumanji(Adapter):
    """A Jumanji task.

    Observations: float32[n], the parts of the suite's observation one after another, without its action mask. Integers with up to
    32 values are one-hot, and those with more are scaled to [0, 1] by their bounds; `step_count` is divided by the time limit.
    Actions: Discrete or MultiDiscrete. Several choices whose validity depends on one another (a row and a column) become one
    Discrete action, with the last choice running fastest.
    """

    def __init__(self, task: str, **options: Any):
        self.env = jumanji.make(registered(task), **options)
        limit = getattr(self.env, "time_limit", None)
        if limit is not None:
            self.env.time_limit = int(NEVER)
        super().__init__(f"jumanji/{task}", limit or UNLIMITED, **options)
        self.expensive_reset = task in EXPENSIVE
        self._bounds = EXPONENTS.get(task, {})
        self._limited = limit is not None
        spec = self.env.observation_spec
        mask = vars(spec).get("action_mask")
        self._sizes = tuple(int(n) for n in np.ravel(self.env.action_spec.num_values))
        self._is_joint = mask is not None and len(self._sizes) > 1 and mask.shape == self._sizes
        self.action_mask = None if mask is None else _mask
        self._length = jax.eval_shape(self.start, jax.random.PRNGKey(0), self.default_params)[0].shape

    def start(self, key, params):
        inner, timestep = self.env.reset(key)
        return self._seen(timestep.observation, inner, params)

    def advance(self, key, inner, action, params):
        del key  # in the suite's state
        inner, timestep = self.env.step(inner, self._chosen(action))
        return *self._seen(timestep.observation, inner, params), timestep.reward, timestep.last()

    def observation_space(self, params) -> Box:
        """Box float32[n]."""
        return Box(-jnp.inf, jnp.inf, self._length, jnp.float32)

    def action_space(self, params=None) -> Discrete | MultiDiscrete:
        """Discrete, or MultiDiscrete."""
        if self._is_joint or len(self._sizes) == 1:
            return Discrete(int(np.prod(self._sizes)))
        return MultiDiscrete(self._sizes)

    def _chosen(self, action: jax.Array) -> jax.Array:
        return jnp.stack(jnp.unravel_index(action, self._sizes)) if self._is_joint else action

    def _seen(self, observation: Any, inner: Any, params: Any) -> tuple[jax.Array, Any, jax.Array | None]:
        """(obs, inner, mask)."""
        parts = list(self._flat(self.env.observation_spec, observation, params.max_steps_in_episode))
        mask = None if self.action_mask is None else jnp.asarray(observation.action_mask, bool).reshape(-1)
        return jnp.concatenate(parts), inner, mask

    def _flat(self, spec: specs.Spec, observation: Any, limit: jax.Array) -> Iterator[jax.Array]:
        """f32[n] of each part but the action mask."""
        for name, part in vars(spec).items():
            if not isinstance(part, specs.Spec) or name == "action_mask":
                continue
            value = getattr(observation, name)
            if not isinstance(part, specs.Array):
                yield from self._flat(part, value, limit)
            elif name == "step_count" and self._limited:
                yield jnp.reshape(value / limit, (1,))
            else:
                yield _numbers(value, self._bounds.get(name) or _bounds(part, name))


def _mask(state, params) -> jax.Array:
    del params
    return state.mask


def build(task: str, **options: Any) -> Jumanji:
    """What `envs.suites` asks of an adapter; the options are those of the task's class."""
    return Jumanji(task, **options)


def registered(task: str) -> str:
    """The name of the latest version in the suite: "Snake-v1"."""
    return max(name for name in jumanji.registered_environments() if name.rpartition("-v")[0] == task)


def _bounds(part: specs.Array, name: str) -> tuple[int, int] | None:
    """Least and greatest of an integer; None for others."""
    if not np.issubdtype(part.dtype, np.integer):
        return None
    if not isinstance(part, specs.BoundedArray):
        raise ValueError(f"Jumanji states no bounds of {name!r}: its integers cannot be scaled.")
    return int(np.asarray(part.minimum).min()), int(np.asarray(part.maximum).max())


def _numbers(value: jax.Array, bounds: tuple[int, int] | None) -> jax.Array:
    """f32[n]"""
    if bounds is None:
        return jnp.asarray(value, jnp.float32).reshape(-1)
    low, high = bounds
    if high - low < CLASSES:
        return jax.nn.one_hot(jnp.asarray(value, jnp.int32) - low, high - low + 1, dtype=jnp.float32).reshape(-1)
    return ((jnp.asarray(value, jnp.float32) - low) / (high - low)).reshape(-1)
