"""What the adapters of other suites have in common: time limits of our own, and the suite's random keys."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs.interface import Environment
from envs.uniform import strong

NEVER = np.int32(2**30)  # steps: the time limit that a suite itself gets, so that its `done` is termination alone


@struct.dataclass
class State:
    """One episode."""

    inner: Any  # the suite's state
    time: jax.Array  # i32[], steps since the start
    mask: jax.Array | None = None  # bool[A], the valid actions, where the suite has them


@struct.dataclass
class Limit:
    """The parameters of a suite that has none: the time limit."""

    max_steps_in_episode: jax.Array  # i32[], steps


class Adapter(Environment):
    """An environment of another suite, without its automatic reset.

    A subclass has `observation_space` and `action_space`, and

        start(key, params)               -> observation, inner, mask
        advance(key, inner, action, params) -> observation, inner, mask, reward, terminated

    where `inner` is the suite's state, `mask` is bool[A] or None, and `terminated` does not include the time limit. The key is
    u32[2], as `jax.random.PRNGKey` makes it: suites keep it in their states.
    """

    def __init__(self, name: str, limit: int, **options: Any):
        self._name = name
        self.limit = limit  # steps
        self._recipe = partial(type(self), name.partition("/")[2], **options)

    def __reduce__(self):
        return self._recipe, ()  # suites hold functions and viewers, which cannot be copied

    @property
    def name(self) -> str:
        """The name that `envs.make` knows it by."""
        return self._name

    @property
    def default_params(self) -> Any:
        """The time limit of the suite."""
        return Limit(np.int32(self.limit))

    @property
    def num_actions(self) -> int:
        """Number of actions; of several choices, number of choices."""
        space = self.action_space(None)
        return space.n if hasattr(space, "n") else space.shape[0]

    def start(self, key: jax.Array, params: Any) -> tuple[jax.Array, Any, jax.Array | None]:
        raise NotImplementedError

    def advance(self, key: jax.Array, inner: Any, action: jax.Array, params: Any) -> tuple[Any, ...]:
        raise NotImplementedError

    def reset_env(self, key, params):
        """(obs, state) at the start of an episode."""
        obs, inner, mask = self.start(_raw(key), params)
        return jnp.asarray(obs, jnp.float32), State(strong(inner), jnp.int32(0), mask)

    def step_env(self, key, state, action, params):
        """(obs, state, reward, terminated, info), without a time limit or a new episode."""
        obs, inner, mask, reward, terminated = self.advance(_raw(key), state.inner, action, params)
        terminated = jnp.asarray(terminated, bool)
        info = {"discount": 1.0 - terminated.astype(jnp.float32)}
        state = State(strong(inner), state.time + 1, mask)
        return jnp.asarray(obs, jnp.float32), state, jnp.asarray(reward, jnp.float32), terminated, info


def one_hot(values: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """f32[n]: integers [..., K], number k of each in [0, sizes[k]), as zeros and ones one after another."""
    values = jax.lax.optimization_barrier(
        values
    )  # XLA fuses what they come from, and then computes it for every zero and one
    planes = [jax.nn.one_hot(values[..., k], size, dtype=jnp.float32) for k, size in enumerate(sizes)]
    return jnp.concatenate(planes, axis=-1).reshape(-1)


def _raw(key: jax.Array) -> jax.Array:
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
