"""One agent for every objective: init, update, train, evaluate. A life is `train`."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from discover.agents import rollout as ro
from discover.agents.config import AgentConfig
from discover.agents.layers import dot_general
from discover.agents.learning import Learner, require_separable
from discover.agents.networks import Heads, Networks, heads_width, make_networks, with_heads, with_masks, with_target
from discover.agents.observations import Masking, Recalling
from discover.devices.modes import is_traced, plain_jax
from discover.devices.plan import CPU, Plan, plan_for
from envs import spaces
from envs.interface import Capabilities
from envs.spaces import MultiDiscrete
from learned_objectives import Objective, Progress, Rollout, Statistics
from learned_objectives.mirror import generalised_advantage

PyTree = Any


class Task(struct.PyTreeNode):
    """What one life is about. Arrays only, so that tasks vmap."""

    env_params: PyTree  # the level
    lifetime: jax.Array  # f32[], environment steps; the agent does not change after it
    learning_rate: jax.Array  # f32[]
    anneal: jax.Array | None = None  # bool[], whether the learning rate falls to zero; None: as AgentConfig.anneal


class AgentState(struct.PyTreeNode):
    """Everything an agent carries from one update to the next. Arrays only."""

    params: PyTree
    opt_state: PyTree
    env: ro.EnvCarry
    key: jax.Array  # of the whole life; update k uses fold_in(key, k)
    num_updates: jax.Array  # i32[]
    statistics: Statistics | None = None  # of the last update; None where the objective does not ask for them
    target: PyTree = None  # parameters of the target network; None where the objective has none
    memory: PyTree = ()  # the objective's own state, of `Objective.init_state`


def _init_memory(objective: Objective) -> Callable[[], PyTree]:
    """Its `init_state`, the same for all objectives of a kind; ValueError where it is a method of an instance."""
    if not isinstance(inspect.getattr_static(type(objective), "init_state"), staticmethod):
        raise ValueError(
            f"init_state of {type(objective).__name__} must be a static method without arguments, because the state at birth "
            "depends on no leaf: decorate it with staticmethod."
        )
    return type(objective).init_state


def stretches(num_updates: int | jax.Array, num_evals: int) -> np.ndarray | jax.Array:
    """i32[num_evals + 1]: where to cut a life into near-equal stretches, in updates."""
    if isinstance(num_updates, jax.Array):
        whole, rest = num_updates // num_evals, num_updates % num_evals
        index = jnp.arange(num_evals + 1)
        return index * whole + index * rest // num_evals  # index * num_updates may exceed int32
    return (np.arange(num_evals + 1, dtype=np.int64) * num_updates // num_evals).astype(np.int32)


def diverged(state: AgentState) -> jax.Array:
    """bool[]: whether any parameter is NaN or infinite. Such an agent still acts, and may even be rewarded."""
    return ~jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(state.params)]).all()


@dataclass(frozen=True)
class Agent:
    """Rollouts, then epochs of minibatches on an objective, with Adam.

    Pure and hashable: agents of one environment and one configuration are equal, and share their compiled programs.
    """

    env: Any  # of `envs.interface`, as `envs.make` returns it
    config: AgentConfig
    critic_width: int = 1
    shards: int = 1  # devices that share this life, along the mesh axis `team.AXIS`
    plan: Plan = CPU  # how its programs are laid out
    statistics: bool = False  # whether it computes statistics of every update, for objectives that read them
    heads: Heads | None = None  # what its critic predicts in place of a vector, of `Objective.heads`
    target_share: float | None = None  # of `Objective.target_share`
    init_memory: Callable[[], PyTree] = Objective.init_state  # the objective's own state at birth
    learning: type[Learner] = Learner  # its gradient steps: a subclass has another derivative program

    def __post_init__(self):
        if not isinstance(self.env, Capabilities):
            raise TypeError(
                "an agent needs an environment with the capabilities of envs.Environment, and "
                f"{type(self.env).__name__} lacks them: envs.make(env) adds them."
            )

    @classmethod
    def fit(cls, env: Any, config: AgentConfig, objective: Objective, plan: Plan | None = None) -> Agent:
        """The agent that an objective trains, with the plan for this process's devices by default.

        Raises ValueError with a sentence where the environment's spaces do not allow it.
        """
        agent = cls(
            env,
            config,
            objective.critic_width,
            plan=plan or plan_for(),
            statistics=bool(objective.needs_statistics),
            init_memory=_init_memory(objective),
        )
        agent.networks  # raises for spaces that no head serves  # noqa: B018
        if config.clip == "separate":
            require_separable(objective)
        if config.normalise_obs and env.num_states is not None:
            raise ValueError(f"normalise_obs has no meaning for {env.name}, whose observations number states.")
        discrete = isinstance(env.action_space(env.default_params), spaces.Discrete | MultiDiscrete)
        if objective.needs_discrete_actions and not discrete:
            raise ValueError(
                f"{type(objective).__name__} reads the probability of an action, and the actions of {env.name} are "
                "continuous: choose an environment with discrete ones, or a drift ('lpo', 'ppo')."
            )
        return agent._grown(objective)

    def _grown(self, objective: Objective) -> Agent:
        """With the heads and the target network of an objective that has them; ValueError where the actions do not allow it."""
        space = self.env.action_space(self.env.default_params)
        discrete = isinstance(space, spaces.Discrete)
        heads = objective.heads(int(space.n) if discrete else 1)
        if heads is None:
            return self
        if not discrete:
            raise ValueError(
                f"{type(objective).__name__} has outputs for every action of one Discrete space, and the actions of "
                f"{self.env.name} are of {space}: choose an environment with a Discrete space."
            )
        if self.config.recurrent and objective.target_share is not None:
            raise ValueError(
                f"{type(objective).__name__} has a target network, which would need a memory of its own: choose a network that "
                f"is not recurrent, such as 'auto', in place of {self.config.network!r}."
            )
        heads = tuple((name, tuple(shape)) for name, shape in heads.items())
        return replace(self, critic_width=heads_width(heads), heads=heads, target_share=objective.target_share)

    @cached_property
    def acting(self) -> Any:
        """The environment with what the networks see: its observations, the mask of its actions where it has one, and what
        recurrent networks remember."""
        env = self.env if self.env.action_mask is None else Masking(self.env)
        return Recalling(env, self.networks.first) if self.config.recurrent else env

    @cached_property
    def networks(self) -> Networks:
        params = self.env.default_params
        with jax.ensure_compile_time_eval():  # bounds that an environment makes in its methods are numbers
            observation_space, action_space = self.env.observation_space(params), self.env.action_space(params)
        networks = make_networks(
            observation_space,
            action_space,
            hidden=self.config.hidden,
            activation=self.config.activation,
            kind=self.config.network,
            critic_width=self.critic_width,
            dot=dot_general(self.config.products, self.plan.copies_transposed),
        )
        if self.env.action_mask is not None:
            networks = with_masks(networks)
        return networks if self.heads is None else with_heads(networks, self.heads)

    @property
    def fills_cache(self) -> bool:
        """Whether the observations of one minibatch are more than a core's own cache holds, on devices that are cores."""
        if self.plan.cache_bytes is None:
            return False
        shape = self.env.observation_space(self.env.default_params).shape
        rows = self.config.steps_per_update // self.config.num_minibatches
        return 4 * rows * math.prod(shape) > self.plan.cache_bytes

    @property
    def worth_sharing(self) -> bool:
        """Whether sharing the rows of a rollout saves more than synchronising devices costs: large minibatches, or physics."""
        return self.fills_cache or self.env.expensive_reset

    def useful_shards(self, num_devices: int) -> int:
        """How many of these devices make one life faster: two if its networks are trained separately; as many as divide its rows
        evenly, if these are worth sharing; otherwise, and where the plan splits no lives, one."""
        c = self.config
        if not self.plan.splits_lives:
            return 1
        if c.recurrent:
            return 1
        if c.clip == "separate":
            return min(num_devices, 2)
        if not self.worth_sharing:
            return 1
        rows = c.steps_per_update // c.num_minibatches
        return max(d for d in range(1, num_devices + 1) if c.num_envs % d == 0 and rows % d == 0)

    @property
    def _row_shards(self) -> int:
        """Of the devices that share this life, those that share its environments. Devices that train a network each may as well
        all step all of them."""
        share = self.config.clip == "joint" or (self.worth_sharing and self.config.num_envs % self.shards == 0)
        return self.shards if share else 1

    def vmap(self, fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """`jax.vmap` for functions that train: lives side by side, or one after another on a CPU where a minibatch of
        observations is more than a core's cache holds, as of MinAtar's frames: four side by side are a quarter slower
        (measured: 38k against 51k environment steps a second on a core)."""
        if self.fills_cache:
            return lambda *items: jax.lax.map(lambda item: fn(*item), items)
        return jax.vmap(fn)

    @property
    def num_starts(self) -> int:
        """Fresh starts per environment and rollout."""
        return self.config.num_starts or (1 if self.env.expensive_reset else self.config.num_steps)

    @cached_property
    def learner(self) -> Learner:
        return self.learning(self.networks, self.config, self.shards, self._row_shards, self.plan.flat_rows)

    def task(self, env_params: PyTree, total_steps: int) -> Task:
        """A life of as many whole rollouts as `total_steps` holds."""
        lifetime = self.config.num_updates(total_steps) * self.config.steps_per_update
        return Task(env_params, jnp.float32(lifetime), jnp.float32(self.config.learning_rate))

    def init(self, task: Task, key: jax.Array) -> AgentState:
        params_key, env_key, life_key = jax.random.split(key, 3)
        params = self.networks.init(params_key)
        env = ro.start(
            self.acting,
            task.env_params,
            env_key,
            num_envs=self.config.num_envs,
            normalise_obs=self.config.normalise_obs,
            normalise_reward=self.config.normalise_reward,
        )
        statistics = Statistics.zeros() if self.statistics else None
        target = None if self.target_share is None else params
        opt_state, memory = self.learner.init(params), self.init_memory()
        return AgentState(params, opt_state, env, life_key, jnp.int32(0), statistics, target, memory)

    def progress(self, task: Task, state: AgentState) -> Progress:
        steps = state.num_updates.astype(jnp.float32) * self.config.steps_per_update
        return Progress(steps, task.lifetime, state.statistics)

    def rate(self, task: Task, progress: Progress) -> jax.Array:
        """f32[]: the learning rate of the update at this point of a life."""
        if task.anneal is not None:
            return task.learning_rate * jnp.where(task.anneal, 1.0 - progress.fraction, 1.0)
        return task.learning_rate * (1.0 - progress.fraction if self.config.anneal else 1.0)

    def update(self, objective: Objective, task: Task, state: AgentState) -> tuple[AgentState, dict[str, jax.Array]]:
        """One rollout and the learning from it. After its lifetime an agent is returned as it came."""
        state, _, metrics = self.step(objective, task, state)
        return state, metrics

    def step(
        self, objective: Objective, task: Task, state: AgentState
    ) -> tuple[AgentState, Rollout, dict[str, jax.Array]]:
        """`update`, and the rollout that was learned from. Differentiable in the objective's leaves and the state's."""
        progress = self.progress(task, state)
        *rollout_keys, batch_key = jax.random.split(jax.random.fold_in(state.key, state.num_updates), 4)
        env, rollout = self.rollout(objective, task, state, rollout_keys)
        targets, memory = objective.observe(rollout, state.memory, progress)
        seen = rollout._replace(obs=ro.normalised_obs(env, rollout.obs))
        rate = self.rate(task, progress)
        params, opt_state, metrics = self.learner.learn(
            objective, progress, state.params, state.opt_state, (seen, targets), rate, batch_key
        )
        statistics = self.statistics_of(params, seen, getattr(objective, "gamma", 0.99)) if self.statistics else None
        env = ro.update_obs_stats(env, rollout.obs)
        target = self._followed(state.target, params)
        after = AgentState(params, opt_state, env, state.key, state.num_updates + 1, statistics, target, memory)
        alive = progress.step < task.lifetime
        return jax.tree.map(lambda new, old: jnp.where(alive, new, old), after, state), rollout, metrics

    def _followed(self, target: PyTree, params: PyTree) -> PyTree:
        """The target network's parameters after an update."""
        share = self.target_share
        if share is None:
            return target
        return jax.tree.map(lambda old, new: share * old + (1.0 - share) * new, target, params)

    def statistics_of(self, params: PyTree, rollout: Rollout, gamma: float) -> Statistics:
        """What an update has done: from the parameters after it and the rollout that it learned from, observations normalised.

        The explained variance is that of the critic before the update, and 0 where the critic predicts a vector. R is the
        lambda-return for lambda = 0.95.
        """
        policy = (self.networks.unrolled or self.networks).actor(params, rollout.obs)
        log_ratio = policy.log_prob(rollout.action) - rollout.log_prob
        change = jnp.expm1(log_ratio)
        explained = jnp.float32(0.0)
        if self.critic_width == 1 and self.heads is None:
            error = generalised_advantage(rollout, gamma=gamma, gae_lambda=0.95)
            spread = (error + rollout.critic[..., 0]).var()
            explained = jnp.where(spread > 0, jnp.clip(1.0 - error.var() / jnp.maximum(spread, 1e-12), -1.0, 1.0), 0.0)
        return Statistics(
            kl=(change - log_ratio).mean(),
            entropy=policy.relative_entropy().mean(),
            explained_variance=explained,
            clipped=(jnp.abs(change) > 0.2).mean(dtype=jnp.float32),
        )

    def rollout(
        self, objective: Objective, task: Task, state: AgentState, keys: Sequence[jax.Array]
    ) -> tuple[ro.EnvCarry, Rollout]:
        """The environments after the next rollout of the agent, and that rollout; `keys` [3] as `rollout.rollout` takes them."""
        networks, params = self.networks, state.params
        if self.target_share is not None:
            networks, params = with_target(networks), params | {"target": state.target}
        return ro.rollout(
            self.acting,
            task.env_params,
            networks,
            params,
            state.env,
            keys,
            num_steps=self.config.num_steps,
            num_starts=self.num_starts,
            discount=getattr(objective, "gamma", 0.99),
            plan=self.plan,
            shards=self._row_shards,
        )

    def train(
        self,
        objective: Objective,
        task: Task,
        key: jax.Array,
        *,
        num_updates: int | jax.Array,
        num_evals: int = 1,
    ) -> tuple[AgentState, jax.Array]:
        """A whole life: (objective, task, key) -> trained agent, and its returns as it learned.

        `num_updates` may be an array: lives of different lengths side by side, which run until the longest ends.

        Returns:
          The last state, and f32[num_evals]: the mean undiscounted return of the training episodes that ended within each of
          `num_evals` equal stretches of the life (see `Episodes.mean_return` for a stretch in which none did).
        """
        stops = stretches(num_updates, num_evals)

        def live(state: AgentState, bounds):
            return self.stretch(objective, task, state, *bounds)

        return jax.lax.scan(live, self.init(task, key), (stops[:-1], stops[1:]))

    def stretch(
        self, objective: Objective, task: Task, state: AgentState, first: jax.Array, stop: jax.Array
    ) -> tuple[AgentState, jax.Array]:
        """Updates `first` to `stop` of a life, and the mean return of the episodes that ended in them."""
        state = state.replace(env=state.env.replace(episodes=state.env.episodes.forget()))
        state = jax.lax.fori_loop(first, stop, lambda _, s: self.update(objective, task, s)[0], state)
        return state, state.env.episodes.mean_return()

    def evaluate(
        self,
        task: Task,
        state: AgentState,
        key: jax.Array,
        *,
        num_episodes: int,
        greedy: bool = False,
    ) -> jax.Array:
        """f32[num_episodes]: undiscounted returns of fresh episodes, one per environment, each to its own end.

        Called by itself, outside of jit and vmap, it runs in `plain_jax`, as `discover.train` does.
        """
        with contextlib.nullcontext() if is_traced((task, state, key)) else plain_jax():
            return self._evaluate(task, state, key, num_episodes, greedy)

    def _evaluate(self, task: Task, state: AgentState, key: jax.Array, num_episodes: int, greedy: bool) -> jax.Array:
        reset_key, step_key = jax.random.split(key)
        keys = jax.random.split(reset_key, num_episodes)
        obs, env_state = jax.vmap(self.acting.reset, in_axes=(0, None))(keys, task.env_params)
        zeros = jnp.zeros(num_episodes, jnp.float32)

        def step(carry):
            i, obs, env_state, playing, total = carry
            act_key, env_key = jax.random.split(jax.random.fold_in(step_key, i))
            seen = ro.normalised_obs(state.env, obs)
            policy = self.networks.actor(state.params, seen)
            noise = self.networks.noise(act_key, (num_episodes,))
            action = self.networks.to_env(policy.mode() if greedy else policy.sample(noise))
            after, env_state, reward, terminated, truncated, _ = jax.vmap(self.acting.step, in_axes=(0, 0, 0, None))(
                jax.random.split(env_key, num_episodes), env_state, action, task.env_params
            )
            obs = self.networks.follow(state.params, seen, after)
            total = total + jnp.where(playing, reward, 0.0)
            return i + 1, obs, env_state, playing & ~(terminated | truncated), total

        carry = (jnp.int32(0), obs, env_state, zeros == 0, zeros)
        return jax.lax.while_loop(lambda c: c[3].any(), step, carry)[-1]
