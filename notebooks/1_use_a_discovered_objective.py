# %% [markdown]
# # 1. Use a discovered objective
#
# You have a PPO, and a search has found a policy objective that may be better. One line of your code changes. This notebook
# shows a plain PPO in JAX, the same PPO with a discovered objective, and a comparison of both.

# %%
# On Colab: install the package, and keep the JAX and NumPy that are there. Anywhere else this cell only prints versions.
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

if "google.colab" in sys.modules:
    Path("keep.txt").write_text("".join(f"{name}=={version(name)}\n" for name in ("jax", "jaxlib", "numpy")))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "-c", "keep.txt"]
    if subprocess.run([*install, "discover-rl"]).returncode != 0:  # not in the package index: install this checkout
        here = Path.cwd()
        root = next((d for d in (here, *here.parents) if (d / "learned_objectives").is_dir()), here / "discover-rl")
        subprocess.run([*install, str(root)], check=True)

print(", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "numpy", "flax", "gymnax")))

# %%
import difflib
import inspect
import os
from typing import NamedTuple

import flax.linen as nn
import gymnax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import learned_objectives as lo
from discover.plots import COLOURS
from discover.results.statistics import interval, iqm, iqm_interval

SMALL = "DISCOVER_NOTEBOOK_SMALL" in os.environ  # set by our own checks, to see in seconds that the notebook runs
NUM_SEEDS = 2 if SMALL else 16
TOTAL_STEPS = 10_000 if SMALL else 200_000  # environment steps of each agent

# %% [markdown]
# ## What can be loaded
#
# There are closed forms, and objectives that were found by a search and have weights. `NAME` is the only thing that you
# change in this notebook to try another.

# %%
print(lo.available())

NAME = "lpo_2026_11"
objective = lo.load(NAME)

# %% [markdown]
# Read the card before you use searched weights. It says how they were made, what they expect, and where they lose.

# %%
print(lo.card(NAME))

# %% [markdown]
# LPO (Lu et al. 2022) is PPO's clip plus a small network. `lpo_2026_11` was searched on two MinAtar games. CartPole, below, was
# not part of the search. LPO is an instance of **mirror learning**: maximise the mean of $r A - D(r, A)$, where $r$ is the
# ratio of the new to the old probability of an action, $A$ is its advantage, and the **drift** $D$ is a penalty on the
# distance from the old policy. PPO's clip is one drift, and LPO is another. The next notebook draws both.
#
# ## A plain PPO
#
# First the agent: an actor and a critic that share no weights.

# %%
env, env_params = gymnax.make("CartPole-v1")


class ActorCritic(nn.Module):
    @nn.compact
    def __call__(self, obs):
        def mlp(size, scale):
            x = nn.tanh(nn.Dense(64)(obs))
            x = nn.tanh(nn.Dense(64)(x))
            return nn.Dense(size, kernel_init=nn.initializers.normal(scale))(x)

        return mlp(env.num_actions, 0.01), mlp(1, 0.1)[..., 0]  # logits, value


network = ActorCritic()

# %% [markdown]
# Then the loss. Advantages are normalised in each minibatch. The discovered drifts were searched on normalised advantages,
# so their shape fits only that scale.


# %%
class Batch(NamedTuple):
    obs: jax.Array
    action: jax.Array
    log_prob: jax.Array  # under the policy that acted
    advantage: jax.Array
    value_target: jax.Array


def ppo_loss(params, batch):
    logits, value = network.apply(params, batch.obs)
    log_probs = jax.nn.log_softmax(logits)
    log_ratio = jnp.take_along_axis(log_probs, batch.action[:, None], axis=1)[:, 0] - batch.log_prob
    advantage = (batch.advantage - batch.advantage.mean()) / (batch.advantage.std() + 1e-8)
    policy_loss = -jnp.minimum(jnp.exp(log_ratio) * advantage, jnp.exp(log_ratio).clip(0.8, 1.2) * advantage).mean()
    value_loss = 0.5 * ((value - batch.value_target) ** 2).mean()
    entropy = -(jnp.exp(log_probs) * log_probs).sum(-1).mean()
    return policy_loss + 0.5 * value_loss - 0.01 * entropy


# %% [markdown]
# ## The one line
#
# This is the same function, with `objective.surrogate` in place of the clip.


# %%
def discovered_loss(params, batch):
    logits, value = network.apply(params, batch.obs)
    log_probs = jax.nn.log_softmax(logits)
    log_ratio = jnp.take_along_axis(log_probs, batch.action[:, None], axis=1)[:, 0] - batch.log_prob
    advantage = (batch.advantage - batch.advantage.mean()) / (batch.advantage.std() + 1e-8)
    policy_loss = -objective.surrogate(log_ratio, advantage).mean()
    value_loss = 0.5 * ((value - batch.value_target) ** 2).mean()
    entropy = -(jnp.exp(log_probs) * log_probs).sum(-1).mean()
    return policy_loss + 0.5 * value_loss - 0.01 * entropy


before, after = (inspect.getsource(f).splitlines()[1:] for f in (ppo_loss, discovered_loss))
print("\n".join(line for line in difflib.ndiff(before, after) if line[0] in "+-"))

# %% [markdown]
# (A *time-aware* objective also needs the progress of training. Its third argument is `lo.Progress(step, lifetime)`, both in
# environment steps. Without it the call raises an error.)
#
# ## The training loop
#
# `train` is a whole training run as one function of a loss and a key. `jax.vmap` over keys gives many seeds, and `jax.jit`
# makes one program of it. It is the usual PPO: collect a rollout, estimate advantages, and take a few epochs of minibatches.
#
# One detail is often wrong. CartPole ends an episode when the pole falls, and *also* after 500 steps, at the time limit.
# After a fall the value is zero. At the time limit the value is the critic's value of the **last observation before the
# reset**, which gymnax returns as `info["final_observation"]`. The bootstrap therefore depends on `terminated` alone. The
# recursion of the advantages stops at both.

# %%
NUM_ENVS, NUM_STEPS, NUM_EPOCHS, NUM_MINIBATCHES = 4, 128, 4, 4
GAMMA, GAE_LAMBDA, LEARNING_RATE = 0.99, 0.95, 2.5e-4
NUM_UPDATES = TOTAL_STEPS // (NUM_ENVS * NUM_STEPS)


def train(loss, key):
    """One agent's life: f32[NUM_UPDATES] twice, summed return and number of the episodes that ended in each rollout."""
    num_gradients = NUM_UPDATES * NUM_EPOCHS * NUM_MINIBATCHES
    schedule = optax.linear_schedule(LEARNING_RATE, 0.0, num_gradients)
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(schedule, eps=1e-5))
    init_key, reset_key, life_key = jax.random.split(key, 3)
    obs, env_state = jax.vmap(env.reset, (0, None))(jax.random.split(reset_key, NUM_ENVS), env_params)
    params = network.init(init_key, obs)

    def act(carry, key):
        params, obs, env_state, score = carry
        act_key, step_key = jax.random.split(key)
        logits, value = network.apply(params, obs)
        action = jax.random.categorical(act_key, logits)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], axis=1)[:, 0]
        step_keys = jax.random.split(step_key, NUM_ENVS)
        next_obs, env_state, reward, terminated, truncated, info = jax.vmap(env.step, (0, 0, 0, None))(
            step_keys, env_state, action, env_params
        )
        _, next_value = network.apply(params, info["final_observation"])  # of the true successor, not of the reset
        delta = reward + GAMMA * jnp.where(terminated, 0.0, next_value) - value
        ended, score = terminated | truncated, score + reward
        seen = (obs, action, log_prob, value, delta, ended, jnp.where(ended, score, 0.0))
        return (params, next_obs, env_state, jnp.where(ended, 0.0, score)), seen

    def accumulate(advantage, step):
        delta, ended = step
        advantage = delta + GAMMA * GAE_LAMBDA * jnp.where(ended, 0.0, advantage)
        return advantage, advantage

    def gradient_step(carry, minibatch):
        params, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(loss)(params, minibatch), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    def update(carry, key):
        params, opt_state, obs, env_state, score = carry
        act_key, shuffle_key = jax.random.split(key)
        act_keys = jax.random.split(act_key, NUM_STEPS)
        (_, obs, env_state, score), seen = jax.lax.scan(act, (params, obs, env_state, score), act_keys)
        seen_obs, action, log_prob, value, delta, ended, scores = seen
        _, advantage = jax.lax.scan(accumulate, jnp.zeros(NUM_ENVS), (delta, ended), reverse=True)
        batch = Batch(seen_obs, action, log_prob, advantage, advantage + value)
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
        shuffle = jax.vmap(lambda key: jax.random.permutation(key, NUM_ENVS * NUM_STEPS))
        order = shuffle(jax.random.split(shuffle_key, NUM_EPOCHS)).reshape(NUM_EPOCHS * NUM_MINIBATCHES, -1)
        minibatches = jax.tree.map(lambda x: x[order], batch)
        (params, opt_state), _ = jax.lax.scan(gradient_step, (params, opt_state), minibatches)
        return (params, opt_state, obs, env_state, score), (scores.sum(), ended.sum())

    carry = (params, optimizer.init(params), obs, env_state, jnp.zeros(NUM_ENVS))
    _, episodes = jax.lax.scan(update, carry, jax.random.split(life_key, NUM_UPDATES))
    return episodes


# %% [markdown]
# ## Compare
#
# One call trains every seed. Both losses get the same keys, so agent number $i$ starts from the same network with both. A
# learning curve is the mean return of the training episodes that ended in each of a few stretches of training.

# %%
NUM_POINTS = 5 if SMALL else 25


def learning_curves(loss):
    """f64[NUM_SEEDS, NUM_POINTS]; NaN where no episode ended."""
    keys = jax.random.split(jax.random.key(0), NUM_SEEDS)
    scores, counts = jax.jit(jax.vmap(lambda key: train(loss, key)))(keys)
    scores, counts = (np.array_split(np.asarray(x, np.float64), NUM_POINTS, axis=1) for x in (scores, counts))
    with np.errstate(invalid="ignore"):
        return np.stack([s.sum(1) / c.sum(1) for s, c in zip(scores, counts, strict=True)], axis=1)


curves = {"PPO": learning_curves(ppo_loss), NAME.upper(): learning_curves(discovered_loss)}

# %%
env_steps = np.arange(1, NUM_POINTS + 1) / NUM_POINTS * NUM_UPDATES * NUM_ENVS * NUM_STEPS
figure, axis = plt.subplots(figsize=(7.6, 4.0), layout="constrained")
for colour, style, (label, returns) in zip(COLOURS, ("-", "--"), curves.items(), strict=False):
    middle, low, high = np.transpose([iqm_interval(returns[:, i]) for i in range(NUM_POINTS)])
    axis.plot(env_steps, middle, style, color=colour, linewidth=1.8, label=label)
    axis.fill_between(env_steps, low, high, color=colour, alpha=0.2, linewidth=0)
axis.set(xlabel="environment steps", ylabel="return of training episodes", title="CartPole-v1")
axis.grid(alpha=0.25)
legend = axis.legend(
    frameon=False,
    loc="upper left",
    bbox_to_anchor=(1.0, 1.0),
    title=f"line: IQM of {NUM_SEEDS} seeds\nband: its 95% interval",
)
plt.show()

# %% [markdown]
# A line is the interquartile mean over seeds, and a band is its 95% bootstrap interval. Two numbers summarise a curve: its
# end, and its mean over all of training, which also contains the speed of learning. The difference between the objectives is
# computed below with an interval.

# %%
ours, theirs = curves[NAME.upper()], curves["PPO"]
for what, mine, yours in [
    ("at the end", ours[:, -1], theirs[:, -1]),
    ("mean over training", np.nanmean(ours, axis=1), np.nanmean(theirs, axis=1)),
]:
    gap = interval(lambda a, b: iqm(a) - iqm(b), mine, yours)
    ahead = f"{NAME.upper() if gap.low > 0 else 'PPO'} is ahead"
    verdict = "no difference can be claimed" if gap.low <= 0 <= gap.high else ahead
    print(f"{what}: PPO {iqm_interval(yours):.0f}, {NAME.upper()} {iqm_interval(mine):.0f}")
    print(f"    difference of the two {gap:.0f}: {verdict} on this evidence")

# %% [markdown]
# The result has limits. CartPole has a ceiling of 500, it is one environment, and the learning rate, the entropy bonus and the
# number of epochs were chosen for PPO. The result shows that the line works in your agent and which returns to expect. It does
# not rank the objectives. For a ranking, use several environments on which no objective was tuned:
# `discover.evaluate(["ppo", "lpo_2026_11"], envs=[...], num_seeds=10)` reports them with intervals.
#
# ## Is it a drift?
#
# Three laws must hold for a drift, whether a person wrote it or a search found it: it is never negative, it is zero at ratio
# 1, and it is flat there. `verify_drift` checks them at many points and searches for violations. It returns nothing if they
# hold. Otherwise the error names the law and the point. A square of the log ratio is a drift. Its absolute value is not,
# although automatic differentiation gives the derivative zero at the kink:

# %%
lo.verify_drift(objective.drift)
lo.verify_drift(lambda log_ratio, advantage, progress: 0.5 * log_ratio**2)
try:
    lo.verify_drift(lambda log_ratio, advantage, progress: jnp.abs(log_ratio))
except lo.DriftLawError as error:
    print(error)

# %% [markdown]
# ## Save it with its record
#
# An objective is a pytree. Its leaves are what a search may change. DPO, a formula that was derived from a network found by a
# search, has two. Change one, save the result with a record of the change, and load it. The file is safetensors with a
# checksum. Reading it runs no code.

# %%
mine = lo.Mirror(drift=lo.DPO(alpha=1.5, beta=0.6))
lo.save(mine, "my_dpo.safetensors", record={"made_by": "hand", "why": "saturates sooner than DPO"})

again = lo.load("my_dpo.safetensors")
print(jax.tree.leaves(again), lo.record("my_dpo.safetensors"))

log_ratio, advantage = jnp.array([-0.5, 0.0, 0.5]), jnp.array([1.0, 1.0, 1.0])
assert jnp.array_equal(again.surrogate(log_ratio, advantage), mine.surrogate(log_ratio, advantage))

# %% [markdown]
# A file that your own search exported is used in the same way: `lo.load("my_objective.safetensors")`.
