"""What an environment can do: the interface of gymnax 1.0, and capabilities that have defaults.

An environment is a Markov decision process with parameters. A key k, a state s, an action a and parameters p are pytrees of
arrays, and every method is a pure function of them:

    reset_env(k, p)          -> o_0, s_0
    step_env(k, s_t, a_t, p) -> o_{t+1}, s_{t+1}, r_t, terminated_{t+1}, info
    is_truncated(s_t, p)     -> truncated_t
    step(k, s_t, a_t, p)     -> o, s, r_t, terminated_{t+1}, truncated_{t+1}, info
    observation_space(p), action_space(p)
    default_params           # p; p.max_steps_in_episode is the time limit, in steps
    name                     # str

`step` returns o_{t+1} and s_{t+1}, and at the end of an episode o_0 and s_0 of the next one.
Observations, actions and types are those that `envs.check` states. `terminated` ends the task: the value of s_{t+1} is 0.
`truncated` is the time limit: the return includes the value of s_{t+1}, from which an agent bootstraps.

    G_t = r_t + gamma (1 - terminated_{t+1}) V(s_{t+1}),    if the episode ends at t + 1

gymnax's `Environment` provides `step`, `reset` and `is_truncated`; ours adds the capabilities. An environment of the gymnax
interface alone gets their defaults from `envs.make`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from gymnax.environments.environment import Environment as GymnaxEnvironment
from gymnax.environments.spaces import Discrete

from envs.sampling import log_uniform_int

PyTree = Any


@dataclass(frozen=True)
class Lifetimes:
    """How long agents of an environment live, in environment steps: log-uniform over [shortest, longest], in whole units."""

    shortest: int  # environment steps
    longest: int  # environment steps
    unit: int = 1  # environment steps; both bounds are multiples of it

    def __post_init__(self):
        if not 0 < self.unit <= self.shortest <= self.longest:
            raise ValueError(
                "lifetimes must satisfy 0 < unit <= shortest <= longest, in environment steps, and are "
                f"unit {self.unit}, shortest {self.shortest}, longest {self.longest}."
            )
        if self.shortest % self.unit or self.longest % self.unit:
            raise ValueError(
                f"shortest and longest must be multiples of unit, {self.unit}, and are {self.shortest} and {self.longest}."
            )

    def sample(self, key: jax.Array) -> jax.Array:
        """f32[], environment steps; the same number for every key where `shortest` is `longest`."""
        if self.shortest == self.longest:
            return jnp.float32(self.shortest)
        units = log_uniform_int(key, self.shortest // self.unit, self.longest // self.unit)
        return (units * self.unit).astype(jnp.float32)


class Capabilities:
    """What an environment can do beyond the interface of gymnax, with defaults: override what applies.

    `envs.check` verifies each of them.
    """

    # key -> parameters: draws one level, with the structure, shapes and types of `default_params`. It is jitted, and mapped over
    # keys. None: there is one level, `default_params`.
    sample_level: Callable[[jax.Array], PyTree] | None = None

    # How long agents live where neither a call nor a recipe gives `total_steps`. None: it must be given.
    lifetimes: Lifetimes | None = None

    # parameters -> f32[], the expected undiscounted return of the best policy in one episode:
    #     max over policies of E[sum_t r_t]
    # Jitted. The score 'optimal_regret' of a curriculum is this less the agent's return. None: it is unknown.
    optimal_return: Callable[[PyTree], jax.Array] | None = None

    # (state, parameters) -> bool[A], which of the actions of a Discrete space are valid in that state, at least one. Of
    # MultiDiscrete actions bool[sum of sizes], of the choices one after another, at least one of each. Policies, and with them
    # entropies, divergences and objectives, have the valid ones alone. None: all are valid.
    action_mask: Callable[[PyTree, PyTree], jax.Array] | None = None

    # Whether `reset_env` costs much more than `step_env`, as with physics: a rollout then draws one fresh start for each
    # environment, and not one for each step.
    expensive_reset: bool = False

    # Whether observations consist of zeros and ones alone: a rollout may then store them as booleans, a quarter of the memory.
    binary_obs: bool = False

    @property
    def num_states(self) -> int | None:
        """n, where an observation is one integer in [0, n) that numbers the state: agents are tables of n rows. None otherwise.

        Follows from `observation_space`, unless it is overridden.
        """
        with jax.ensure_compile_time_eval():
            space = self.observation_space(self.default_params)
        return space.n if isinstance(space, Discrete) else None


class Environment(Capabilities, GymnaxEnvironment):
    """The base class of environments: gymnax's, with the capabilities."""


DEFAULTS = {name: vars(Capabilities)[name] for name in Capabilities.__annotations__}


def capabilities(env: Any) -> dict[str, Any]:
    """What any environment of gymnax's interface states of its capabilities, and the defaults of the others. `num_states` is left
    out, since it follows from the observations."""
    return {name: getattr(env, name, default) for name, default in DEFAULTS.items()}


class Named(Capabilities):
    """An environment of gymnax's interface, with capabilities, under the name that `envs.make` knows it by.

    Everything else is that of `env`.
    """

    def __init__(self, env: Any, name: str):
        self.env = env
        self.name = name
        vars(self).update(capabilities(env))

    def __getattr__(self, attribute: str) -> Any:
        if attribute == "env" or attribute.startswith("__"):  # not there yet, in a copy
            raise AttributeError(attribute)
        return getattr(self.env, attribute)
