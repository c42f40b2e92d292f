"""The suite brax. The only file that imports brax, which takes seconds; `envs.suites` imports it late."""

import contextlib
import io
import os
import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments.spaces import Box

from envs.interface import Environment
from envs.uniform import strong


@contextlib.contextmanager
def _quiet():
    """brax prints and warns about parts of it that are not used here; errors still show."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        import mujoco

        handler = mujoco.get_mju_user_warning()
        # Without a handler, mujoco writes MUJOCO_LOG.TXT into the working directory.
        mujoco.set_mju_user_warning(lambda message: None)
        try:
            yield
        finally:
            mujoco.set_mju_user_warning(handler)


with _quiet():
    from brax import envs as brax_envs


def _spare_shardy() -> None:
    """Let jax 0.11 partition by GSPMD, unless the user has said by what: its Shardy crashes as it compiles a `shard_map` that
    uses an array without elements from outside, argument or constant, as Brax's systems have many (jaxlib 0.11.2, in
    ManualComputationUnusedInputsPattern). Here alone, because GSPMD crashes there on sorts of several arrays at once."""
    if jax.__version_info__[:2] == (0, 11) and "JAX_USE_SHARDY_PARTITIONER" not in os.environ:
        with contextlib.suppress(AttributeError):
            jax.config.update("jax_use_shardy_partitioner", False)


_spare_shardy()


@struct.dataclass
class State:
    """One episode. No Brax environment reads more than the physics in its step."""

    pipeline_state: Any
    time: jax.Array  # i32[], steps since the start


@struct.dataclass
class Params:
    """A time limit, and the pool from which `step` begins new episodes."""

    max_steps_in_episode: jax.Array  # i32[], steps
    starts: tuple[jax.Array, State]  # (obs, state) at the start; leading axis [pool_size]


class Brax(Environment):
    """A Brax task, without brax's training wrappers.

    `step` is the physics, this time limit, and at an end a start drawn from `params.starts`:
    a reset computed at every step costs as much as the step. The pool of `default_params` never
    changes; a training loop that calls `params = env.refresh(key, params)` once per rollout
    always draws a new start.

    With `expensive_reset` a rollout draws few starts of its own.

    Scores on different backends are not comparable; `name` and `backend` record the one in use.
    """

    expensive_reset = True

    def __init__(
        self,
        task: str,
        *,
        backend: str = "spring",
        episode_length: int = 1000,  # environment steps
        pool_size: int = 64,
    ):
        with _quiet():
            self.env = brax_envs.get_environment(task, backend=backend)
        self.backend = backend
        self._recipe = partial(type(self), task, backend=backend, episode_length=episode_length, pool_size=pool_size)
        self._name = f"brax/{task}@{backend}"
        self._episode_length = episode_length
        # Drawn here, outside any trace, as `default_params` may be asked for inside one.
        self._starts = _draw(self, jax.random.key(0), pool_size)

    def __reduce__(self):
        return self._recipe, ()  # brax environments hold modules, which cannot be copied

    @property
    def name(self) -> str:
        """Task and backend: "brax/ant@spring"."""
        return self._name

    @property
    def num_actions(self) -> int:
        """Number of action dimensions."""
        return self.env.action_size

    @property
    def default_params(self) -> Params:
        """The time limit asked for, and a pool of starts that is always the same."""
        return Params(np.int32(self._episode_length), self._starts)

    def refresh(self, key: jax.Array, params: Params) -> Params:
        """The same parameters with a new pool of starts."""
        pool_size = jax.tree.leaves(params.starts)[0].shape[0]
        return params.replace(starts=_draw(self, key, pool_size))

    @partial(jax.jit, static_argnames=("self",))
    def step(self, key, state, action, params=None):
        """(obs, state, reward, terminated, truncated, info), into a new episode at an end."""
        params = self.default_params if params is None else params
        key_step, key_start = jax.random.split(key)
        obs, state, reward, terminated, info = self.step_env(key_step, state, action, params)
        truncated = self.is_truncated(state, params)
        info |= {"terminated": terminated, "truncated": truncated, "final_observation": obs}
        pool_size = params.starts[0].shape[0]
        index = jax.random.randint(key_start, (), 0, pool_size)
        start = jax.tree.map(lambda leaf: leaf[index], params.starts)
        done = terminated | truncated
        obs, state = jax.tree.map(lambda new, old: jnp.where(done, new, old), start, (obs, state))
        return obs, state, reward, terminated, truncated, info

    def step_env(self, key, state, action, params):
        """(obs, state, reward, terminated, info), without a time limit or a new episode."""
        del key, params  # the physics is deterministic
        zero = jnp.zeros(())
        before = brax_envs.State(state.pipeline_state, zero, zero, zero)
        after = self.env.step(before, jnp.clip(action, -1.0, 1.0))
        terminated = jnp.asarray(after.done) > 0.5
        info = {"discount": 1.0 - terminated.astype(jnp.float32)}
        obs, reward = jnp.asarray(after.obs, jnp.float32), jnp.asarray(after.reward, jnp.float32)
        next_state = State(strong(after.pipeline_state), state.time + 1)
        return obs, next_state, reward, terminated, info

    def reset_env(self, key, params):
        """(obs, state) at a start that no pool has seen."""
        del params
        start = self.env.reset(key)
        state = State(strong(start.pipeline_state), jnp.int32(0))
        return jnp.asarray(start.obs, jnp.float32), state

    def observation_space(self, params) -> Box:
        """Box float32[n]."""
        return Box(-jnp.inf, jnp.inf, self._starts[0].shape[1:], jnp.float32)

    def action_space(self, params=None) -> Box:
        """Box(-1, 1) float32[n]; `step` clips to it."""
        return Box(-1.0, 1.0, (self.num_actions,), jnp.float32)


def build(task: str, **options: Any) -> Brax:
    """What `envs.suites` asks of an adapter; the options are those of `Brax`."""
    return Brax(task, **options)


@partial(jax.jit, static_argnums=(0, 2))
def _draw(env: Brax, key: jax.Array, pool_size: int) -> tuple[jax.Array, State]:
    """(obs, state) of fresh resets, stacked [pool_size]."""
    keys = jax.random.split(key, pool_size)
    return jax.vmap(env.reset_env, in_axes=(0, None))(keys, None)
