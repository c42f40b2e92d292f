"""One agent for every objective: init, update, train, evaluate. A life is `train`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from gymnax.environments import spaces
from jax.flatten_util import ravel_pytree

from discover import parallel
from discover import rollout as ro
from discover.networks import ACTIVATIONS, Networks, make_networks
from learned_objectives import Objective, Outputs, Progress, Rollout

PyTree = Any

CACHE = 2**20  # bytes, of a core's own


@dataclass(frozen=True)
class AgentConfig:
    """What every agent of a run has in common. Sizes are per agent."""

    num_envs: int = 4  # B, environments stepped side by side
    num_steps: int = 128  # T, steps per environment between updates
    num_starts: int | None = None  # fresh starts per environment and rollout; None: as many as steps, or 1 if dear
    num_epochs: int = 4  # passes over each rollout
    num_minibatches: int = 4  # gradient steps per pass; must divide num_envs * num_steps
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 2.5e-4
    anneal: bool = True  # learning rate to zero, linearly over the life
    max_grad_norm: float = 0.5  # global norm, of actor and critic together
    adam_b1: float = 0.9
    adam_b2: float = 0.999
    adam_eps: float = 1e-5
    hidden: tuple[int, ...] = (64, 64)  # of the actor and, apart from it, of the critic
    activation: Literal["tanh", "relu", "swish"] = "tanh"
    network: Literal["auto", "mlp", "cnn", "table"] = "auto"  # auto: a CNN for images, a table for numbered states
    normalise_obs: bool = False  # by their running mean and deviation
    normalise_reward: bool = False  # by the running deviation of the discounted return

    def __post_init__(self):
        for name in ("num_envs", "num_steps", "num_epochs", "num_minibatches"):
            _require(
                getattr(self, name) >= 1,
                f"{name} must be at least 1, and is {getattr(self, name)}.",
            )
        for name in ("learning_rate", "max_grad_norm", "adam_eps"):
            value = getattr(self, name)
            _require(0 < value < math.inf, f"{name} must be positive and finite, and is {value}.")
        for name in ("adam_b1", "adam_b2"):
            _require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), and is {getattr(self, name)}.")
        _require(
            self.num_starts is None or self.num_starts >= 1,
            f"num_starts must be at least 1, or None, and is {self.num_starts}.",
        )
        _require(
            self.network in ("auto", "mlp", "cnn", "table"),
            f"network must be auto, mlp, cnn or table, and is {self.network!r}.",
        )
        _require(self.optimizer in ("adam", "sgd"), f"optimizer must be adam or sgd, and is {self.optimizer!r}.")
        _require(
            len(self.hidden) > 0 and all(width >= 1 for width in self.hidden),
            f"hidden must name at least one layer, each at least 1 wide, and is {self.hidden}.",
        )
        _require(
            self.activation in ACTIVATIONS,
            f"activation must be one of {', '.join(ACTIVATIONS)}, and is {self.activation!r}.",
        )
        _require(
            self.steps_per_update % self.num_minibatches == 0,
            f"num_minibatches must divide num_envs * num_steps = {self.steps_per_update}, and {self.num_minibatches} "
            "does not.",
        )

    @property
    def steps_per_update(self) -> int:
        """Environment steps in one rollout."""
        return self.num_envs * self.num_steps

    def num_updates(self, total_steps: int) -> int:
        """Whole rollouts in a life of `total_steps` environment steps."""
        _require(
            total_steps >= self.steps_per_update,
            f"total_steps must hold at least one rollout of {self.num_envs} x {self.num_steps} = "
            f"{self.steps_per_update} environment steps, and is {total_steps}.",
        )
        _require(
            total_steps // self.steps_per_update < 2**31,
            f"total_steps must hold fewer than 2^31 rollouts of {self.steps_per_update} environment steps, and is {total_steps}.",
        )
        return total_steps // self.steps_per_update


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise ValueError(sentence)


class Task(struct.PyTreeNode):
    """What one life is about. Arrays only, so that tasks vmap."""

    env_params: PyTree  # the level
    lifetime: jax.Array  # f32[], environment steps; the agent does not change after it
    learning_rate: jax.Array  # f32[]


class AgentState(struct.PyTreeNode):
    """Everything an agent carries from one update to the next. Arrays only."""

    params: PyTree
    opt_state: PyTree
    env: ro.EnvCarry
    key: jax.Array  # of the whole life; update k uses fold_in(key, k)
    num_updates: jax.Array  # i32[]


def stretches(num_updates: int | jax.Array, num_evals: int) -> np.ndarray | jax.Array:
    """i32[num_evals + 1]: where to cut a life into near-equal stretches, in updates."""
    if isinstance(num_updates, jax.Array):
        return jnp.arange(num_evals + 1) * num_updates // num_evals
    return (np.arange(num_evals + 1, dtype=np.int64) * num_updates // num_evals).astype(np.int32)


def _norm(tree: PyTree) -> jax.Array:
    """f32[]: the global norm, differentiable at zero. Summed along rows first, where there are any, which XLA's CPU backend can
    vectorise."""
    squares = [(x * x).sum(0).sum() for x in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares) + 1e-30)


def diverged(state: AgentState) -> jax.Array:
    """bool[]: whether any parameter is NaN or infinite. Such an agent still acts, and may even be rewarded."""
    return ~jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(state.params)]).all()


def permutations(key: jax.Array, count: int, size: int, shards: int = 1) -> jax.Array:
    """i32[count, size]: independent random orders of range(size).

    Sorts one array of random high bits over index low bits, four times faster on CPU than sorting pairs. Only where 16 random
    bits are left; equal ones, rare, keep their order. With `shards`, so many devices share the sorting if `count` is a multiple.
    """
    index_bits = max(size - 1, 1).bit_length()
    if index_bits > 16:
        keys = jax.random.split(key, count)
        return jax.vmap(lambda k: jax.random.permutation(k, size))(keys)
    mask = jnp.uint32(2**index_bits - 1)
    words = (jax.random.bits(key, (count, size)) & ~mask) | jnp.arange(size, dtype=jnp.uint32)
    shards = shards if count % shards == 0 else 1
    words = parallel.gathered(jnp.sort(parallel.own(words, shards), axis=-1), shards)
    return (words & mask).astype(jnp.int32)


@dataclass(frozen=True)
class Agent:
    """Rollouts, then epochs of minibatches on an objective, with Adam.

    Pure and hashable: agents of one environment and one configuration are equal, and share their compiled programs.
    """

    env: Any  # of the gymnax 1.0 interface
    config: AgentConfig
    critic_width: int = 1
    shards: int = 1  # devices that share this life's environments and minibatches, along the mesh axis `parallel.AXIS`

    @classmethod
    def fit(cls, env: Any, config: AgentConfig, objective: Objective) -> Agent:
        """The agent that an objective trains; ValueError, with a sentence, where the environment's spaces do not allow it."""
        agent = cls(env, config, objective.critic_width)
        agent.networks  # raises for spaces that no head serves  # noqa: B018
        if config.normalise_obs and isinstance(env.observation_space(env.default_params), spaces.Discrete):
            raise ValueError(f"normalise_obs has no meaning for {env.name}, whose observations number states.")
        if objective.needs_discrete_actions and not isinstance(env.action_space(env.default_params), spaces.Discrete):
            raise ValueError(
                f"{type(objective).__name__} reads the probability of an action, and the actions of {env.name} are "
                "continuous: choose an environment with discrete ones, or a drift ('lpo', 'ppo')."
            )
        return agent

    @cached_property
    def networks(self) -> Networks:
        params = self.env.default_params
        return make_networks(
            self.env.observation_space(params),
            self.env.action_space(params),
            hidden=self.config.hidden,
            activation=self.config.activation,
            kind=self.config.network,
            critic_width=self.critic_width,
        )

    @property
    def fills_cache(self) -> bool:
        """Whether the observations of one minibatch are more than a core's own cache holds."""
        shape = self.env.observation_space(self.env.default_params).shape
        rows = self.config.steps_per_update // self.config.num_minibatches
        return 4 * rows * math.prod(shape) > CACHE

    def vmap(self, fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """`jax.vmap` for functions that train: lives side by side, or one after another on a CPU where a minibatch of
        observations is more than a core's cache holds, as of MinAtar's frames: four side by side are a quarter slower
        (measured: 38k against 51k environment steps a second on a core)."""
        if jax.default_backend() == "cpu" and self.fills_cache:
            return lambda *items: jax.lax.map(lambda item: fn(*item), items)
        return jax.vmap(fn)

    @property
    def num_starts(self) -> int:
        """Fresh starts per environment and rollout."""
        dear = getattr(self.env, "dear_resets", False)
        return self.config.num_starts or (1 if dear else self.config.num_steps)

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The direction of a step; its length, the learning rate, is the task's."""
        c = self.config
        if c.optimizer == "sgd":
            return optax.identity()
        # The root's epsilon, far below rounding, keeps its derivative finite where a gradient has always been zero.
        return optax.scale_by_adam(c.adam_b1, c.adam_b2, c.adam_eps, eps_root=1e-16)

    def task(self, env_params: PyTree, total_steps: int) -> Task:
        """A life of as many whole rollouts as `total_steps` holds."""
        lifetime = self.config.num_updates(total_steps) * self.config.steps_per_update
        return Task(env_params, jnp.float32(lifetime), jnp.float32(self.config.learning_rate))

    def init(self, task: Task, key: jax.Array) -> AgentState:
        params_key, env_key, life_key = jax.random.split(key, 3)
        params = self.networks.init(params_key)
        env = ro.start(
            self.env,
            task.env_params,
            env_key,
            num_envs=self.config.num_envs,
            normalise_obs=self.config.normalise_obs,
            normalise_reward=self.config.normalise_reward,
        )
        return AgentState(params, self.optimizer.init(self._packed(params)[0]), env, life_key, jnp.int32(0))

    def progress(self, task: Task, state: AgentState) -> Progress:
        steps = state.num_updates.astype(jnp.float32) * self.config.steps_per_update
        return Progress(steps, task.lifetime)

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
        targets = objective.targets(rollout, progress)
        seen = rollout._replace(obs=ro.see(env, rollout.obs))
        rate = task.learning_rate * (1.0 - progress.fraction if self.config.anneal else 1.0)
        params, opt_state, metrics = self._learn(objective, progress, state, (seen, targets), rate, batch_key)
        after = AgentState(params, opt_state, ro.absorb(env, rollout.obs), state.key, state.num_updates + 1)
        alive = progress.step < task.lifetime
        return jax.tree.map(lambda new, old: jnp.where(alive, new, old), after, state), rollout, metrics

    def rollout(
        self, objective: Objective, task: Task, state: AgentState, keys: Sequence[jax.Array]
    ) -> tuple[ro.EnvCarry, Rollout]:
        """What the agent meets next, and the environments after it; `keys` [3] as `rollout.rollout` takes them."""
        return ro.rollout(
            self.env,
            task.env_params,
            self.networks,
            state.params,
            state.env,
            keys,
            num_steps=self.config.num_steps,
            num_starts=self.num_starts,
            discount=getattr(objective, "gamma", 0.99),
            shards=self.shards,
        )

    def _packed(self, params: PyTree) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
        """The parameters as gradient steps take them, and the way back: for Adam in one vector, so that its arithmetic is three
        kernels and not three for every layer. Plain descent has none, and its tables are large."""
        return ravel_pytree(params) if self.config.optimizer == "adam" else (params, lambda same: same)

    def _learn(self, objective, progress, state: AgentState, experience, rate, key):
        """Epochs of minibatches: (params, opt_state, metrics of every gradient step)."""
        c = self.config
        size = c.steps_per_update
        flat = jax.tree.map(lambda x: parallel.by_device(x, self.shards), experience)

        params, unpack = self._packed(state.params)

        def gradient_step(carry, index):
            params, opt_state = carry
            if index is None:
                batch, mine = flat, parallel.own((flat[0].obs, flat[0].action), self.shards)
            else:
                batch, own = jax.tree.map(lambda x: x[index], flat), parallel.own(index, self.shards)
                mine = jax.tree.map(lambda x: x[own], (flat[0].obs, flat[0].action))
            outputs, backward = jax.vjp(lambda p: self._outputs(unpack(p), *mine), params)

            def loss(outputs):
                return objective.loss(outputs, *batch, progress)

            # An objective sees whole minibatches, whoever ran the networks on their rows.
            slopes, metrics = jax.grad(loss, has_aux=True)(parallel.gathered(outputs, self.shards))
            (grads,) = backward(parallel.own(slopes, self.shards))
            grads = parallel.summed(grads, self.shards)
            # optax.clip_by_global_norm divides and multiplies every leaf; one shared factor rounds in one place, which
            # keeps the result the same whatever the number of devices.
            shrink = jnp.minimum(1.0, c.max_grad_norm / (_norm(grads) + 1e-12))
            grads = jax.tree.map(lambda g: g * shrink, grads)
            direction, opt_state = self.optimizer.update(grads, opt_state, params)
            params = jax.tree.map(lambda p, d: p - rate * d, params, direction)
            return (params, opt_state), metrics

        order = None  # where every minibatch is the whole rollout, there is nothing to shuffle
        if c.num_minibatches > 1:
            order = permutations(key, c.num_epochs, size, self.shards).reshape(c.num_epochs * c.num_minibatches, -1)
            if self.shards > 1:  # the same rows, wherever they lie
                order = jnp.asarray(parallel.row_by_device(c.num_steps, c.num_envs, self.shards))[order]
        (params, opt_state), metrics = jax.lax.scan(
            gradient_step,
            (params, state.opt_state),
            order,
            length=c.num_epochs * c.num_minibatches,
        )
        return unpack(params), opt_state, metrics

    def _outputs(self, params: PyTree, obs: PyTree, action: PyTree) -> Outputs:
        policy = self.networks.actor(params, obs)
        return Outputs(policy.log_prob(action), policy.entropy(), self.networks.critic(params, obs))

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
        """f32[num_episodes]: undiscounted returns of fresh episodes, one per environment, each to its own end."""
        reset_key, step_key = jax.random.split(key)
        keys = jax.random.split(reset_key, num_episodes)
        obs, env_state = jax.vmap(self.env.reset, in_axes=(0, None))(keys, task.env_params)
        zeros = jnp.zeros(num_episodes)

        def step(carry):
            i, obs, env_state, playing, total = carry
            act_key, env_key = jax.random.split(jax.random.fold_in(step_key, i))
            policy = self.networks.actor(state.params, ro.see(state.env, obs))
            noise = self.networks.noise(act_key, (num_episodes,))
            action = self.networks.to_env(policy.mode() if greedy else policy.sample(noise))
            obs, env_state, reward, terminated, truncated, _ = jax.vmap(self.env.step, in_axes=(0, 0, 0, None))(
                jax.random.split(env_key, num_episodes), env_state, action, task.env_params
            )
            total = total + jnp.where(playing, reward, 0.0)
            return i + 1, obs, env_state, playing & ~(terminated | truncated), total

        carry = (jnp.int32(0), obs, env_state, zeros == 0, zeros)
        return jax.lax.while_loop(lambda c: c[3].any(), step, carry)[-1]
