"""T steps of B environments, and the running statistics that go with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from discover.agents.networks import Networks
from discover.agents.observations import map_visible, visible
from discover.devices.plan import CPU, Plan
from discover.devices.team import all_gather, local_shard
from learned_objectives import Rollout

PyTree = Any


class RunningStats(struct.PyTreeNode):
    """Mean and variance of everything seen so far (Chan et al. 1979, merged a rollout at a time)."""

    mean: jax.Array  # f32[...]
    var: jax.Array  # f32[...]
    count: jax.Array  # f32[]

    @classmethod
    def create(cls, shape: tuple[int, ...]) -> RunningStats:
        return cls(jnp.zeros(shape, jnp.float32), jnp.ones(shape, jnp.float32), jnp.float32(1e-4))

    def update(self, x: jax.Array) -> RunningStats:
        """With x f32[T, B, ...]."""
        count = float(x.shape[0] * x.shape[1])
        mean, var = x.mean((0, 1)), x.var((0, 1))
        total = self.count + count
        delta = mean - self.mean
        spread = self.var * self.count + var * count + delta**2 * self.count * count / total
        return RunningStats(self.mean + delta * count / total, spread / total, total)

    def normalise(self, x: jax.Array) -> jax.Array:
        return jnp.clip((x - self.mean) / jnp.sqrt(self.var + 1e-8), -10.0, 10.0)


class Episodes(struct.PyTreeNode):
    """Undiscounted returns of the episodes in play and of those that ended."""

    running: jax.Array  # f32[B], return so far of the episode in play
    last: jax.Array  # f32[B], return of the last finished episode
    finished: jax.Array  # bool[B], whether there is a last one
    total: jax.Array  # f32[], sum of the returns of episodes that ended since `forget`
    count: jax.Array  # f32[], how many those are
    best: jax.Array | None = None  # f32[], the highest return of all finished episodes; None: it is not tracked

    @classmethod
    def create(cls, num_envs: int) -> Episodes:
        zeros = jnp.zeros(num_envs, jnp.float32)
        return cls(zeros, zeros, zeros > 0, jnp.float32(0), jnp.float32(0))

    def update(self, reward: jax.Array, done: jax.Array) -> Episodes:
        """After a rollout, reward f32[T, B] and done bool[T, B]. Sums under masks, where a loop would add to every step."""
        step = jnp.arange(len(reward))[:, None]
        last = jnp.where(done, step, -1).max(0)  # i32[B], when an episode ended last, and when one did before that
        before = jnp.where(done & (step < last), step, -1).max(0)
        ended, closed = last >= 0, step <= last

        def gained(mask):
            return jnp.where(mask, reward, 0.0).sum(0)

        of_last = gained(closed & (step > before)) + jnp.where(before < 0, self.running, 0.0)
        return Episodes(
            running=gained(~closed) + jnp.where(ended, 0.0, self.running),
            last=jnp.where(ended, of_last, self.last),
            finished=self.finished | ended,
            total=self.total + (gained(closed) + jnp.where(ended, self.running, 0.0)).sum(),
            count=self.count + done.sum(),
            best=None if self.best is None else jnp.maximum(self.best, self._highest(reward, done)),
        )

    def _highest(self, reward: jax.Array, done: jax.Array) -> jax.Array:
        """f32[]: the highest return of the episodes that ended in a rollout; minus infinity if none did."""

        def step(running, now):
            reward, done = now
            total = running + reward
            return jnp.where(done, 0.0, total), jnp.where(done, total, -jnp.inf)

        return jax.lax.scan(step, self.running, (reward, done))[1].max()

    def forget(self) -> Episodes:
        return self.replace(total=jnp.float32(0), count=jnp.float32(0))

    def mean_return(self) -> jax.Array:
        """f32[]: the mean over episodes that ended since `forget`; if none did, over each environment's last one; NaN if no
        episode has ever ended."""
        known = self.finished.sum()
        last = jnp.where(self.finished, self.last, 0.0).sum() / jnp.maximum(known, 1)
        last = jnp.where(known > 0, last, jnp.nan)
        return jnp.where(self.count > 0, self.total / jnp.maximum(self.count, 1), last)


class EnvCarry(struct.PyTreeNode):
    """What lives on between rollouts."""

    state: PyTree  # [B, ...]
    obs: PyTree  # f32[B, ...], raw; see `observations` for what may be with it
    episodes: Episodes
    obs_stats: RunningStats | None  # None: observations are used as they come
    return_stats: RunningStats | None  # of the discounted return; None: rewards are used as they come
    discounted: jax.Array | None  # f32[B], the discounted return that `return_stats` is about


def normalised_obs(carry: EnvCarry, obs: PyTree) -> PyTree:
    """The observation as the networks see it."""
    return obs if carry.obs_stats is None else map_visible(carry.obs_stats.normalise, obs)


def start(
    env: Any,
    env_params: PyTree,
    key: jax.Array,
    *,
    num_envs: int,
    normalise_obs: bool,
    normalise_reward: bool,
) -> EnvCarry:
    obs, state = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(key, num_envs), env_params)
    return EnvCarry(
        state=state,
        obs=obs,
        episodes=Episodes.create(num_envs),
        obs_stats=RunningStats.create(visible(obs).shape[1:]) if normalise_obs else None,
        return_stats=RunningStats.create(()) if normalise_reward else None,
        discounted=jnp.zeros(num_envs, jnp.float32) if normalise_reward else None,
    )


class Binary:
    """An environment whose observations of zeros and ones are booleans: a quarter of the memory, and exactly the same numbers to
    the networks."""

    def __init__(self, env: Any):
        self.env = env
        self.is_truncated = env.is_truncated

    def reset_env(self, key, params):
        obs, state = self.env.reset_env(key, params)
        return as_bool(obs), state

    def step_env(self, key, state, action, params):
        obs, *rest = self.env.step_env(key, state, action, params)
        return as_bool(obs), *rest


def as_bool(obs: PyTree) -> PyTree:
    return map_visible(lambda x: x.astype(bool), obs)


def rollout(
    env: Any,
    env_params: PyTree,
    networks: Networks,
    params: PyTree,
    carry: EnvCarry,
    keys: jax.Array,
    *,
    num_steps: int,
    num_starts: int,
    discount: float,
    plan: Plan = CPU,
    shards: int = 1,
) -> tuple[EnvCarry, Rollout]:
    """Act for T steps in B environments, which reset themselves.

    Each environment has `num_starts` fresh starts. An episode that ends at step t is followed by start number t mod `num_starts`,
    so that with as many as steps none is used twice; that index is the same for all environments, which makes it a slice and not
    a gather.

    The statistics in `carry` are those the policy saw, and stay as they are: use them for the updates on this rollout, so
    that the first ratio is exactly 1, then call `absorb`. `discount` is for the reward's scale alone. `keys` [3]: of the
    environments, the policy and the starts. `shards`: the number of devices along `team.AXIS`. Each of them steps a part of
    the environments, and all receive the whole rollout. The random draws do not depend on their number.
    """
    (num_envs, *one), dtype = visible(carry.obs).shape, visible(carry.obs).dtype
    size = math.prod(one)
    if plan.binary_obs and carry.obs_stats is None and env.binary_obs:
        env, carry = Binary(env), carry.replace(obs=as_bool(carry.obs))
    env_key, noise_key, start_key = keys
    keys = local_shard(jax.random.split(env_key, (num_steps, num_envs)), shards, 1)
    noise = local_shard(networks.noise(noise_key, (num_steps, num_envs)), shards, 1)
    start_keys = local_shard(jax.random.split(start_key, (num_starts, num_envs)), shards, 1)
    env_step = jax.vmap(_step_env, in_axes=(None, 0, 0, 0, None))
    late = plan.late_values is None or size <= plan.late_values
    restart = auto_reset(env, env_params, start_keys, at_once=at_once(plan, size, num_starts, num_steps))

    def at_limit(obs, cut):
        """Critic at observations [..., B, ...] with which an episode was cut short; zeros if none was, as at most steps of most
        rollouts."""
        like = jax.eval_shape(networks.critic, params, obs)

        def values():
            found = networks.critic(params, normalised_obs(carry, obs))
            return jax.tree.map(lambda x: jnp.where(_beside(cut, x), x, 0.0), found)

        return jax.lax.cond(cut.any(), values, lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like))

    def step(c, step_input):
        t, keys, noise = step_input
        policy = networks.actor(params, normalised_obs(c, c.obs))
        action = jax.lax.stop_gradient(policy.sample(noise))
        last_obs, state, reward, terminated, truncated = env_step(
            env, keys, c.state, networks.to_env(action), env_params
        )
        last_obs = networks.follow(params, normalised_obs(c, c.obs), last_obs)
        done = terminated | truncated
        last = last_obs if late else at_limit(last_obs, truncated & ~terminated)
        obs, state = restart(t, done, (last_obs, state))
        out = (c.obs, action, policy, last, reward, terminated, truncated)
        c, discounted = _discount(c.replace(state=state, obs=obs), reward, done, discount)
        return c, (out, discounted)

    moving = (carry.state, carry.obs, carry.discounted)
    state, obs, discounted = local_shard(moving, shards)
    mine = carry.replace(state=state, obs=obs, discounted=discounted)
    mine, (out, discounted) = jax.lax.scan(step, mine, (jnp.arange(num_steps), keys, noise))
    obs, action, policy, last, reward, terminated, truncated = out
    # What a step itself does not need is done once for the whole rollout: probabilities, returns, and the values at visited
    # states. Within an episode the true successor is the next state visited.
    log_prob = jax.vmap(type(policy).log_prob)(policy, action)
    values = networks.critic(params, normalised_obs(carry, _followed_by(obs, mine.obs)))
    last = at_limit(last, truncated & ~terminated) if late else last
    # The first state of the next episode stands in for the successor of a terminal one where there are heads.
    elsewhere = truncated & ~terminated if isinstance(values, dict) else terminated | truncated
    next_critic = jax.tree.map(lambda x, y: jnp.where(_beside(elsewhere, x), x, y[1:]), last, values)
    critic = jax.tree.map(lambda x: x[:-1], values)
    seen = Rollout(obs, action, log_prob, critic, next_critic, reward, terminated, truncated)
    seen, discounted = all_gather((seen, discounted), shards, 1)
    state, obs, running = all_gather((mine.state, mine.obs, mine.discounted), shards)
    episodes = carry.episodes.update(seen.reward, seen.terminated | seen.truncated)
    carry = carry.replace(
        state=state, obs=map_visible(lambda x: x.astype(dtype), obs), discounted=running, episodes=episodes
    )
    reward, carry = _scale_reward(seen.reward, discounted, carry)
    return carry, seen._replace(reward=reward)


def at_once(plan: Plan, size: int, num_starts: int, num_steps: int) -> bool:
    """Whether `restarts` draws all starts before the first step: where starts are fewer than steps, and where the plan says so
    of observations of `size` numbers."""
    return num_starts < num_steps or plan.eager_starts is None or size <= plan.eager_starts


def auto_reset(
    env: Any, env_params: PyTree, keys: jax.Array, *, at_once: bool
) -> Callable[[jax.Array, jax.Array, PyTree], PyTree]:
    """What follows step t: (t, done bool[B], (observations, states)) -> the same, with fresh ones where an episode is done.

    `keys` [S, B] of fresh starts, of which step t takes number t mod S. Either all are drawn at once before the first step, far
    cheaper than one by one where they are small; or those of a step at that step, if any episode ends there (under `jax.vmap` at
    every step). Of large observations a rollout's worth of starts is more than a core's cache holds. The starts are the same.
    """
    reset = jax.vmap(env.reset_env, in_axes=(0, None))
    starts = jax.vmap(reset, in_axes=(0, None))(keys, env_params) if at_once else keys

    def restart(t, done, now):
        start = jax.tree.map(lambda x: x[t % len(keys)], starts)
        if at_once:
            return _select(done, start, now)

        def fresh():
            return _select(done, reset(start, env_params), now)

        def same():  # an environment's starts may have types of their own
            return jax.tree.map(lambda x, y: x if x.dtype == y.dtype else x.astype(y.dtype), now, jax.eval_shape(fresh))

        return jax.lax.cond(done.any(), fresh, same)

    return restart


def _step_env(env, key, state, action, env_params):
    """One step of one environment, without the auto-reset of `env.step`."""
    obs, state, reward, terminated, _ = env.step_env(key, state, action, env_params)
    return obs, state, jnp.asarray(reward, jnp.float32), terminated, env.is_truncated(state, env_params)


def _beside(mask: jax.Array, x: jax.Array) -> jax.Array:
    """A mask of the leading axes of x, with as many axes as x."""
    return mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))


def _followed_by(steps: PyTree, last: PyTree) -> PyTree:
    """[T, B, ...] and [B, ...] -> [T + 1, B, ...]."""
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), steps, last)


def _select(done: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    def pick(x, y):
        return jnp.where(_beside(done, x), x, y)

    return jax.tree.map(pick, new, old)


def _discount(c: EnvCarry, reward, done, discount: float):
    """(the carry after a reward, f32[B]: the discounted return that it completes; None if rewards are not scaled)."""
    if c.discounted is None:
        return c, None
    discounted = discount * c.discounted + reward
    return c.replace(discounted=jnp.where(done, 0.0, discounted)), discounted


def _scale_reward(reward, discounted, carry: EnvCarry):
    """Divide rewards by the standard deviation of the discounted return, this rollout included."""
    if carry.return_stats is None:
        return reward, carry
    stats = carry.return_stats.update(discounted)
    return jnp.clip(reward / jnp.sqrt(stats.var + 1e-8), -10.0, 10.0), carry.replace(return_stats=stats)


def update_obs_stats(carry: EnvCarry, obs: PyTree) -> EnvCarry:
    """Let the observation statistics see a rollout's observations, after the updates on it."""
    if carry.obs_stats is None:
        return carry
    return carry.replace(obs_stats=carry.obs_stats.update(visible(obs)))
