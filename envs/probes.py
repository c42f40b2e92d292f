"""Tiny environments with known values: the one that an agent fails shows what is broken.

Each states its values under the best policy as formulas of the discount γ, and computes them
with `value(obs, gamma)`, for observations with any leading axes.
Reference: the probe environments of Andy Jones, "Debugging RL, without the agonizing pain".
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments.spaces import Box, Discrete

from envs.interface import Environment


@struct.dataclass
class State:
    """All that a probe can hold."""

    sign: jax.Array  # f32[], +1 or -1, each with probability 1/2
    time: jax.Array  # i32[], steps since the start


@struct.dataclass
class Params:
    """A time limit."""

    max_steps_in_episode: jax.Array  # i32[], steps


class Probe(Environment):
    """A sign, a clock and two actions; `length` steps, then termination."""

    name = "probe"
    num_actions = 2
    length: int | None = 1  # steps; None: never terminates
    limit = 1000  # steps; far from every `length`, so that one flag is set at a time
    obs_shape = (1,)

    def show(self, state: State) -> jax.Array:
        """What is seen: f32[*obs_shape]; a constant 1, unless overridden."""
        return jnp.ones(self.obs_shape, jnp.float32)

    def reward(self, state: State, action: jax.Array) -> jax.Array:
        """f32[], from the state in which the action is taken; 1, unless overridden."""
        return jnp.float32(1)

    def value(self, obs: jax.Array, gamma: float) -> jax.Array:
        """f32[...]: true values of observations f32[..., *obs_shape]; 1, unless overridden."""
        return jnp.ones(obs.shape[: obs.ndim - len(self.obs_shape)], jnp.float32)

    @property
    def default_params(self) -> Params:
        """The time limit."""
        return Params(np.int32(self.limit))

    def step_env(self, key, state, action, params):
        """(obs, state, reward, terminated, info)."""
        reward = self.reward(state, action)
        state = state.replace(time=state.time + 1)
        never = self.length is None
        terminated = jnp.bool_(False) if never else state.time >= self.length
        info = {"discount": 1.0 - terminated.astype(jnp.float32)}
        return self.show(state), state, reward, terminated, info

    def reset_env(self, key, params):
        """(obs, state)."""
        sign = jax.random.rademacher(key, (), jnp.float32)
        state = State(sign, jnp.int32(0))
        return self.show(state), state

    def observation_space(self, params) -> Box:
        """Box float32[*obs_shape]."""
        return Box(-1.0, 1.0, self.obs_shape, jnp.float32)

    def action_space(self, params=None) -> Any:
        """Two actions, unless overridden."""
        return Discrete(2)


class Constant(Probe):
    """One observation, one step, reward 1. V = 1. Fails: the value loss or its optimizer."""

    name = "probe/constant"


class Observation(Probe):
    """Observation ±1, one step, reward = observation. V(o) = o. Fails: values ignore the input."""

    name = "probe/observation"

    def show(self, state):
        return state.sign[None]

    def reward(self, state, action):
        return state.sign

    def value(self, obs, gamma):
        return obs[..., 0]


class Discount(Probe):
    """Two steps, one-hot observation, reward 0 then 1. V = γ, then 1. Fails: discounting."""

    name = "probe/discount"
    length = 2
    obs_shape = (2,)

    def show(self, state):
        return jax.nn.one_hot(state.time, 2, dtype=jnp.float32)

    def reward(self, state, action):
        return state.time.astype(jnp.float32)

    def value(self, obs, gamma):
        return obs @ jnp.array([gamma, 1.0], jnp.float32)


class Action(Probe):
    """One step, reward +1 for action 0, -1 for action 1. V = 1. Fails: the policy loss."""

    name = "probe/action"

    def reward(self, state, action):
        return jnp.where(action == 0, 1.0, -1.0).astype(jnp.float32)


class ObservationAction(Probe):
    """Observation ±1, one step, reward +1 if the action is 1 at +1 and 0 at -1, else -1. V = 1.

    Fails: advantages are paired with the wrong observations or actions.
    """

    name = "probe/observation_action"

    def show(self, state):
        return state.sign[None]

    def reward(self, state, action):
        return jnp.where((action == 1) == (state.sign > 0), 1.0, -1.0).astype(jnp.float32)


class Truncation(Probe):
    """Reward 1 for ever, one observation, a time limit of 5. V = 1 / (1 - γ).

    Fails: a time limit is taken for a death. With γ = 0.9 the value is 10; such an agent finds
    one between 1 and the 4.0951 of `probe/termination`.
    """

    name = "probe/truncation"
    length = None
    limit = 5

    def value(self, obs, gamma):
        return jnp.full(obs.shape[:-1], 1.0 / (1.0 - gamma), jnp.float32)


class Termination(Probe):
    """Reward 1, one-hot time, termination at the fifth step. V at step t = Σ_{k < 5 - t} γ^k.

    Fails: values run on past a death.
    """

    name = "probe/termination"
    length = 5
    obs_shape = (5,)

    def show(self, state):
        return jax.nn.one_hot(state.time, 5, dtype=jnp.float32)

    def value(self, obs, gamma):
        powers = gamma ** jnp.arange(5, dtype=jnp.float32)
        return obs @ jnp.cumsum(powers)[::-1]


class Continuous(Probe):
    """Observation ±1, one step, reward -(a - o/2)², a in [-1, 1]. V = 0, at a = o/2.

    Fails: the Gaussian policy.
    """

    name = "probe/continuous"
    num_actions = 1

    def show(self, state):
        return state.sign[None]

    def reward(self, state, action):
        return -jnp.square(action[0] - 0.5 * state.sign)

    def value(self, obs, gamma):
        return jnp.zeros(obs.shape[:-1], jnp.float32)

    def action_space(self, params=None):
        return Box(-1.0, 1.0, (1,), jnp.float32)


class Image(ObservationAction):
    """`probe/observation_action` seen as a 5x5 image, one plane lit per sign. V = 1.

    Fails: the convolutional network, or the layout of its input.
    """

    name = "probe/image"
    obs_shape = (5, 5, 2)

    def show(self, state):
        plane = (state.sign > 0).astype(jnp.int32)
        return jnp.zeros(self.obs_shape, jnp.float32).at[2, 2, plane].set(1.0)


PROBES = {
    probe.name: probe
    for probe in (
        Constant,
        Observation,
        Discount,
        Action,
        ObservationAction,
        Truncation,
        Termination,
        Continuous,
        Image,
    )
}
