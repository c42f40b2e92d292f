# %% [markdown]
# # 2. Look inside a drift
#
# A policy update sees each sample as two numbers: the ratio $r = \pi(a|s) / \pi_\text{old}(a|s)$, by how much the action has
# become more likely since the data was collected, and its advantage $A$. Mirror learning (Kuba et al. 2022) maximises the
# mean of
#
# $$ r A - D(r, A) $$
#
# and all that A2C, PPO, MDPO, DPO, LPO and TA-LPO disagree about is the **drift** $D$. So we can look at it: it is a surface.

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

print(", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "numpy", "flax")))

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import learned_objectives as lo
from discover import plots
from discover.plots import COLOURS

SMALL = "DISCOVER_NOTEBOOK_SMALL" in os.environ  # set by our own checks, to see in seconds that the notebook runs
NUM_POINTS = 41 if SMALL else 401  # of a curve
NUM_EPOCHS = 20 if SMALL else 200  # of a policy update

# %% [markdown]
# Four drifts will do, and a fifth that knows the time comes later. Three are formulas. LPO is a network of eight features of
# $r$ and $A$ with no biases, added to PPO's drift. Evolution set its weights, on two MinAtar games, starting from PPO:
# `lo.card("lpo")` says how.

# %%
drifts = {
    "none (A2C)": lo.NoDrift(),
    "PPO": lo.Clip(epsilon=0.2),
    "DPO": lo.DPO(),
    "LPO": lo.load("lpo").drift,
}
styles = dict(zip(drifts, zip(COLOURS, ("-", "--", "-", "-."), strict=False), strict=False))

# %% [markdown]
# ## What does a drift charge, and how hard does it pull?
#
# On the left a good action, $A = 1$; on the right a bad one, $A = -1$. Above, the price $D$ of having moved to ratio $r$.
# Below, what the optimiser feels: the slope $\frac{d}{dr}(rA - D)$. Where it is positive the action is made still more
# likely, where it is negative less likely, and where it is zero the sample has nothing more to say.


# %%
def slope(drift, ratio, advantage, progress=None):
    """d/dr (r A - D) at ratio f32[n], for one advantage."""

    def total(ratio):
        return drift.surrogate(jnp.log(ratio), jnp.full_like(ratio, advantage), progress).sum()

    return jax.grad(total)(ratio)


def slices(drifts, progress=None, advantages=(1.0, -1.0)):
    ratio = jnp.linspace(0.3, 2.5, NUM_POINTS)
    _, axes = plt.subplots(2, 2, figsize=(10.4, 6), layout="constrained", sharex=True, sharey="row")
    for (above, below), advantage in zip(axes.T, advantages, strict=True):
        for label, drift in drifts.items():
            now = progress[label] if progress else None
            colour, style = styles[label]
            price = drift(jnp.log(ratio), jnp.full_like(ratio, advantage), now)
            above.plot(ratio, price, style, color=colour, label=label)
            below.plot(ratio, slope(drift, ratio, advantage, now), style, color=colour, label=label)
        above.set_title(f"advantage A = {advantage:g}")
        below.set_xlabel("ratio r")
        below.axhline(0.0, color="0.6", linewidth=0.8)
    axes[0, 0].set_ylabel("drift D")
    axes[1, 0].set_ylabel("slope of rA − D")
    for axis in axes.flat:
        axis.axvline(1.0, color="0.6", linewidth=0.8, linestyle=":")
        axis.grid(alpha=0.25)
    axes[0, 1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    plt.show()


slices(drifts)

# %% [markdown]
# Every price starts at nothing at $r = 1$ (dotted) and every slope starts there at $A$: *next to the old policy all of them
# are the plain policy gradient*. They part further out. PPO stops dead at 1.2 and at 0.8. For a good action DPO lets go
# smoothly. For a bad action it does something that PPO never does: left of some ratio its slope is *positive*. What evolution
# found is the other way about: a good action is clipped as by PPO, and a bad one may go on falling, at a part of the slope.
#
# ## And over all advantages?
#
# The same two quantities for every pair of log ratio and advantage; the slope is divided by $A$, so that 1 (white) means
# "not held back", 0 (orange) "gain cut off", and dark red, inside a black line, "turned back". In which corners does each
# drift act at all?

# %%
plots.drift_landscape({label: drift for label, drift in drifts.items() if label != "none (A2C)"})

# %% [markdown]
# Both formulas act in two corners only: good actions that have become likelier, and bad ones that have become less likely.
# Those are the samples on which the update has already got what it wanted. In the other two the policy has moved the wrong
# way, and nothing should hold it back. A network is free to act anywhere, and yet, having begun at PPO, it has stayed in the
# same two corners. What it has changed is the lower one: for actions that are only a little bad the clip is gone. (The specks
# along $A = 0$ weigh nothing: there the slope is divided by next to nothing.)
#
# ## How far may a bad action fall before DPO brings it back?
#
# For $A < 0$, DPO's slope is $A\,(1 - \tanh^2(A \log r / \beta) / r)$ below $r = 1$, so it changes sign where
# $\tanh^2(A \log r / \beta) = r$. This is the **rollback**: a bad action that fell too far within one update is made likelier
# again. Where does it start?

# %%
ratio = jnp.linspace(0.15, 1.1, 20 * NUM_POINTS)
figure, axis = plt.subplots(figsize=(7.6, 4.0), layout="constrained")
for colour, style, advantage in zip(COLOURS, ("-", "--", "-.", ":"), (-0.5, -1.0, -2.0, -3.0), strict=False):
    felt = slope(drifts["DPO"], ratio, advantage) / -advantage
    axis.plot(ratio, felt, style, color=colour, label=f"A = {advantage:g}")
    turn = float(ratio[jnp.argmax(felt < 0)])  # the first ratio, from the left, at which it is still pushed down
    theirs = float(jnp.tanh(advantage * jnp.log(turn) / 0.6) ** 2)
    print(f"A = {advantage:4g}: turned back below r = {turn:.3f}, where tanh^2 = {theirs:.3f}")
axis.axhline(0.0, color="0.6", linewidth=0.8)
axis.set(xlabel="ratio r", ylabel="slope of rA − D, over |A|", ylim=(-1.15, 2.0), title="DPO on bad actions")
axis.annotate("made likelier again", (0.87, 0.08), color="0.3")
axis.annotate("made less likely", (0.87, -0.2), color="0.3")
axis.grid(alpha=0.25)
axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
plt.show()

# %% [markdown]
# The worse the action, the sooner it is caught. PPO's clip only stops pushing a bad action down; other samples, through
# the shared network, can still drag it further, and nothing in PPO pulls it back.
#
# ## Which laws does a drift keep, and who checks?
#
# Three, for every advantage and at every moment of training:
#
# $$ D(r, A) \ge 0, \qquad D(1, A) = 0, \qquad \frac{\partial D}{\partial r}(1, A) = 0. $$
#
# They say that staying costs nothing, moving is never paid for, and a *small* move is free. With exact expectations they
# are what makes each mirror-learning update an improvement, so they are worth more than a clever formula. LPO keeps them
# by construction: its features vanish at $r = 1$, there is no bias, and a relu with a little slack keeps the result at or
# above zero and flat around $r = 1$. Hence they hold for any weights, those found and those drawn at random:

# %%
for label, drift in drifts.items():
    lo.verify_drift(drift)
    print(f"{label}: a drift")
lo.verify_drift(drifts["LPO"], num_draws=3 if SMALL else 20)
print("LPO, with weights redrawn again and again: a drift")

# %% [markdown]
# What does it say of something that is not? Here are three ways to get it wrong. Each seems harmless.

# %%
broken = {
    "a constant bonus": lambda log_ratio, advantage, progress: 0.5 * log_ratio**2 + 0.01,
    "r log r, without - r + 1": lambda log_ratio, advantage, progress: jnp.exp(log_ratio) * log_ratio,
    "an absolute value": lambda log_ratio, advantage, progress: jnp.abs(log_ratio * advantage),
}
for label, drift in broken.items():
    try:
        lo.verify_drift(drift)
    except lo.DriftLawError as error:
        print(f"{label}:\n    {error}")

# %% [markdown]
# The second is the usual estimate of a KL divergence. Its *mean* over the old policy is never negative, but on a single
# sample it can be, and then moving is paid for. Adding $1 - r$, whose mean is zero, mends it; that is MDPO's drift,
# `lo.KL`.
#
# ## What does time do?
#
# A *time-aware* drift (TA-LPO, Jackson et al. 2024) also knows $n/N$, the fraction of training that is over, so a search may
# find one that is bold early and careful late. The fraction **multiplies** the features $x$: the network reads
# $[x, \tfrac{n}{N} x]$, sixteen numbers that still vanish at $r = 1$. Below is one such network at three moments. It began as
# the LPO above, blind to the time, and evolution went on from there. One set of weights can be three drifts. Has it become so?

# %%
ta_lpo = lo.load("ta_lpo").drift
LIFETIME = 1e6  # environment steps
moments = {f"TA-LPO, n/N = {f:g}": lo.Progress(f * LIFETIME, LIFETIME) for f in (0.0, 0.5, 1.0)}
styles |= dict(zip(moments, zip(COLOURS, ("-", "--", "-."), strict=False), strict=False))
slices(dict.fromkeys(moments, ta_lpo), moments)

# %% [markdown]
# It has not: to the eye, the three lines are one. Five short steps of evolution found a way on from LPO that is the same at any
# age. That is worth knowing before one believes a name. And over all advantages? Blue is what neither formula has: pushed
# *harder* than with no drift.

# %%
plots.drift_landscape({"TA-LPO": ta_lpo}, fractions=(0.0, 0.5, 1.0))

# %% [markdown]
# What could a longer search do? At $n/N = 0$ the second half of the features is zero, and then it grows in: the first layer is
# $W_1 + \frac{n}{N} W_2$. At each moment the result is a drift. Why not simply *append* $n/N$ to the features, as one would with
# any other network?

# %%
lo.verify_drift(ta_lpo)
print("multiplied: a drift, at every n/N")


class Appended(lo.LPO):
    """As an LPO, with n/N as one more feature. Not a drift."""

    def __call__(self, log_ratio, advantage, progress):
        u = jnp.stack([log_ratio, -jnp.expm1(log_ratio)], axis=-1)
        x = jnp.concatenate([u, advantage[..., None] * u, jnp.full((*log_ratio.shape, 1), progress.fraction)], axis=-1)
        return jax.nn.relu(jnp.tanh(x @ self.hidden) @ self.out - self.slack)


hidden, out = jax.random.normal(jax.random.key(3), (5, 128)), 0.1 * jax.random.normal(jax.random.key(4), (128,))
try:
    lo.verify_drift(Appended(hidden, out))
except lo.DriftLawError as error:
    print("appended:", error)

# %% [markdown]
# Because $n/N$ does not vanish at $r = 1$: an agent that has not moved at all would be charged.
#
# ## What does it do to a policy?
#
# The smallest agent there is: one state, four actions, a softmax over four logits. The old policy and the advantages are
# known, so there is no noise. One update is many epochs of gradient ascent on $\sum_a \pi_\text{old}(a)\,(r_a A_a - D(r_a, A_a))$,
# always with the same old data, as in PPO. **How far does the policy go before the drift stops it?**

# %%
old = jnp.array([0.1, 0.3, 0.4, 0.2])
reward = jnp.array([1.0, 0.6, 0.3, -0.5])
advantage = reward - old @ reward
advantage = advantage / jnp.sqrt(old @ advantage**2)  # standardised under the old policy, as in a minibatch
print("advantages", [round(float(a), 2) for a in advantage])


def one_update(drift, progress=None, learning_rate=0.3):
    """The ratio of every action after each epoch: f32[NUM_EPOCHS + 1, 4]."""

    def surrogate(logits):
        return old @ drift.surrogate(jax.nn.log_softmax(logits) - jnp.log(old), advantage, progress)

    def epoch(logits, _):
        logits = logits + learning_rate * jax.grad(surrogate)(logits)
        return logits, jax.nn.softmax(logits) / old

    _, ratios = jax.lax.scan(epoch, jnp.log(old), length=NUM_EPOCHS)
    return jnp.concatenate([jnp.ones((1, 4)), ratios])


updates = {label: one_update(drift) for label, drift in drifts.items()}
updates["MDPO, n/N = 0.5"] = one_update(lo.KL(), lo.Progress(0.5 * LIFETIME, LIFETIME))
updates["TA-LPO, n/N = 1"] = one_update(ta_lpo, lo.Progress(LIFETIME, LIFETIME))

figure, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained", sharex=True, sharey=True)
for axis, (label, ratios) in zip(axes.flat, updates.items(), strict=True):
    for a, style in enumerate(("-", "--", "-.", ":")):
        axis.plot(ratios[:, a], style, color=COLOURS[a], label=f"A = {advantage[a]:.1f}")
    axis.set(title=label, yscale="log", ylim=(0.02, 15), yticks=[0.1, 1, 10], yticklabels=["0.1", "1", "10"])
    axis.axhline(1.0, color="0.6", linewidth=0.8)
    axis.grid(alpha=0.25)
for axis in axes[-1]:
    axis.set_xlabel("epoch")
for axis in axes[:, 0]:
    axis.set_ylabel("ratio of the action")
axes[0, 2].legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
plt.show()

# %% [markdown]
# Each line is an action. With no drift the update runs on towards the policy that always takes the best action, on the
# strength of one batch of data. PPO stops early, a step beyond its clip. DPO lets good actions grow further, holds the bad
# one near where its rollback begins, and lets the action of advantage 0 fall: at $A = 0$ its drift is 0 as well, so nothing
# keeps that action, and its probability is what the good ones take. MDPO's drift does not ask for $A$, and holds every
# action. LPO and TA-LPO hold the best action at PPO's clip, rattling at its edge, and let the rest go on: the second best grows
# to twice its share, and what is bad keeps falling. And the very first epoch?

# %%
first = np.stack([np.asarray(ratios[1]) for ratios in updates.values()])
print("ratios after one epoch:", np.round(first[0], 4))
print("largest difference between drifts:", f"{np.abs(first - first[0]).max():.1g}")

print("\nratios after all epochs, and KL(old, new):")
for label, ratios in updates.items():
    print(f"{label:26}", np.round(np.asarray(ratios[-1]), 2), f"{float(-old @ jnp.log(ratios[-1])):.3f}")

# %% [markdown]
# After one epoch all are equal: that is what "zero and flat at ratio 1" means. A drift only speaks from the second gradient
# step on, so *an objective can only differ from A2C if you reuse data*. If you take one step per rollout, do not bother
# to change yours.
#
# Next: how a search finds a drift.
