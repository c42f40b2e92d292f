"""An LPG that starts as an imitation of A2C: supervised learning of its network to A2C's targets.

The M symbols of an agent's prediction y have centres c_i, evenly spaced over [-10, 10]. The prediction means the value
V = sum_i c_i y_i. Where rewards are divided by the deviation of their discounted sum (`AgentConfig.normalise_reward`), most
values lie in this range. The targets are

    policy        A_t - entropy_coef log pi(a_t|s_t),     A_t = delta_t + gamma lambda (1 - end_t) A_{t+1}
    prediction    softmax_i(-(c_i - V_t - A_t)^2 / (2 w^2)),    w the distance of two centres

with delta_t as of `generalised_advantage`. In the mean over actions, the second term of the policy's target gives the gradient
of an entropy bonus. The network learns the targets on random rollouts: rewards, values, ends and policies are drawn, and no
environment takes part. Our A2C normalises advantages over a minibatch. The imitation does not: its network sees one trajectory at
a time.
Reference: Mnih et al. 2016 (A2C, as its synchronous form), arXiv:1602.01783.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax

import learned_objectives as lo
from learned_objectives.mirror import generalised_advantage

LIMIT = 10.0  # of |a value|, in deviations of the discounted return
GAE_LAMBDA, ENTROPY_COEF = 0.95, 0.01  # of the A2C that is imitated
STEPS, LENGTH, BATCH, RATE = 3000, 20, 128, 3e-3  # gradient steps, rollout sizes T and B, Adam's rate at the start
ACTIONS = 4  # of the random policies
FEWEST = 8  # predictions: of fewer, softmax rounds values towards zero
CLOSE = 0.98  # share of the variance of A2C's targets that a good imitation explains


def centres(predictions: int) -> jax.Array:
    """f32[M]: the value that each symbol stands for."""
    return jnp.linspace(-LIMIT, LIMIT, predictions) if predictions > 1 else jnp.zeros(1)


def logits_of(value: jax.Array, predictions: int) -> jax.Array:
    """f32[..., M]: logits of the prediction that means this value f32[...]."""
    width = 2.0 * LIMIT / max(predictions - 1, 1)
    return -((centres(predictions) - jnp.clip(value, -LIMIT, LIMIT)[..., None]) ** 2) / (2.0 * width**2)


def value_of(logits: jax.Array) -> jax.Array:
    """f32[...]: the value that a prediction f32[..., M] means."""
    return jax.nn.softmax(logits) @ centres(logits.shape[-1])


def targets_of_a2c(rollout: lo.Rollout, gamma: float) -> tuple[jax.Array, jax.Array]:
    """(policy, value) f32[T, B]: what A2C would teach an agent whose predictions mean values."""
    value, following = value_of(rollout.critic), value_of(rollout.next_critic)
    seen = rollout._replace(critic=value[..., None], next_critic=following[..., None])
    advantage = generalised_advantage(seen, gamma=gamma, gae_lambda=GAE_LAMBDA)
    return advantage - ENTROPY_COEF * rollout.log_prob, value + advantage


def random_rollout(key: jax.Array, predictions: int) -> lo.Rollout:
    """A rollout f32[T, B] that no environment made. Each of its B columns has a level of value, a size of its changes, a rate of
    terminations, and rewards of another size, sign and frequency."""
    keys = iter(jax.random.split(key, 16))
    column, cell = (BATCH,), (LENGTH, BATCH)

    def uniform(shape, low=0.0, high=1.0):
        return jax.random.uniform(next(keys), shape, minval=low, maxval=high)

    def log_uniform(low, high):
        return jnp.exp(uniform(column, jnp.log(low), jnp.log(high)))

    keep = uniform(column, 0.5, 1.0)  # autocorrelation of the values
    noise = jax.random.normal(next(keys), (LENGTH + 1, BATCH)) * jnp.sqrt(1.05 - keep**2)
    _, change = jax.lax.scan(lambda before, x: (keep * before + x,) * 2, noise[0], noise)
    value = uniform(column, -0.8 * LIMIT, 0.8 * LIMIT) + log_uniform(0.05, 1.5) * change
    logits = logits_of(value, predictions)
    logits += 0.3 * jax.random.normal(next(keys), logits.shape)  # agents learn predictions only roughly
    truncated = uniform(cell) < 0.02
    elsewhere = jnp.roll(logits[1:], 1, axis=1)  # the true successor of a truncated step is not the next row
    sign = jnp.where(uniform(column) < 0.25, -1.0, 1.0)
    size = 1.0 + 0.3 * jax.random.normal(next(keys), cell)
    policy = jax.nn.log_softmax(uniform(column, 0.0, 3.0)[:, None] * jax.random.normal(next(keys), (*cell, ACTIONS)))
    action = jax.random.categorical(next(keys), policy)
    return lo.Rollout(
        obs=None,
        action=None,
        log_prob=jnp.take_along_axis(policy, action[..., None], -1)[..., 0],
        critic=logits[:-1],
        next_critic=jnp.where(truncated[..., None], elsewhere, logits[1:]),
        reward=sign * log_uniform(0.01, 1.0) * jnp.where(uniform(cell) < uniform(column), size, 0.0),
        terminated=uniform(cell) < uniform(column, 0.0, 0.15),
        truncated=truncated,
    )


def random_progress(key: jax.Array) -> lo.Progress:
    """A moment of a life of 2^10 to 2^24 environment steps, for rules that are time-aware."""
    length, fraction = jax.random.uniform(key, (2,))
    lifetime = 2.0 ** (10.0 + 14.0 * length)
    return lo.Progress(fraction * lifetime, lifetime)


def _errors(lpg: lo.LPG, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of a random rollout: the policy's mean squared error, the variance of its target, and the mean KL of predictions."""
    rollout_key, progress_key = jax.random.split(key)
    rollout = random_rollout(rollout_key, lpg.predictions)
    policy, value = targets_of_a2c(rollout, lpg.gamma)
    found = lpg.targets(rollout, random_progress(progress_key))
    wanted = jax.nn.log_softmax(logits_of(value, lpg.predictions))
    divergence = (jnp.exp(wanted) * (wanted - found.prediction)).sum(-1).mean()
    return ((found.policy - policy) ** 2).mean(), policy.var(), divergence


@partial(jax.jit, static_argnums=2)
def _imitate(lpg: lo.LPG, key: jax.Array, steps: int) -> lo.LPG:
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(RATE, steps)))

    def loss(lpg, key):
        error, _, divergence = _errors(lpg, key)
        return error + divergence

    def step(carry, key):
        lpg, state = carry
        updates, state = optimizer.update(jax.grad(loss)(lpg, key), state)
        return (jax.tree.map(jnp.add, lpg, updates), state), None

    (taught, _), _ = jax.lax.scan(step, (lpg, optimizer.init(lpg)), jax.random.split(key, steps))
    return taught


def imitate_a2c(lpg: lo.LPG, key: jax.Array, steps: int = STEPS) -> lo.LPG:
    """The LPG after supervised learning to A2C's targets: half a minute on two cores for a state of 64."""
    return _imitate(lpg, key, steps)


@jax.jit
def explained(lpg: lo.LPG, key: jax.Array) -> jax.Array:
    """f32[]: 1 - error / variance of A2C's target for the policy, over 16 random rollouts."""
    error, variance, _ = jax.vmap(lambda key: _errors(lpg, key))(jax.random.split(key, 16))
    return 1.0 - error.mean() / variance.mean()
