# %% [markdown]
# # 2. Look inside a drift
#
# A policy update uses two numbers of each sample: the ratio $r = \pi(a|s) / \pi_\text{old}(a|s)$, by which the probability of
# the action has changed since the data was collected, and the advantage $A$. Mirror learning (Kuba et al. 2022) maximises the
# mean of
#
# $$ r A - D(r, A). $$
#
# A2C, PPO, MDPO, DPO, LPO and TA-LPO differ only in the **drift** $D$. A drift is a surface, so it can be drawn.

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
# The notebook uses four drifts, and later two that may depend on time. Three are formulas. LPO here is `lpo_2026_11`: a network of eight features
# of $r$ and $A$ without biases, added to PPO's drift. Evolution set its weights on two MinAtar games, and started from PPO.
# `lo.card("lpo_2026_11")` has the details.

# %%
drifts = {
    "none (A2C)": lo.NoDrift(),
    "PPO": lo.Clip(epsilon=0.2),
    "DPO": lo.DPO(),
    "LPO": lo.load("lpo_2026_11").drift,
}
styles = dict(zip(drifts, zip(COLOURS, ("-", "--", "-", "-."), strict=False), strict=False))

# %% [markdown]
# ## The penalty and its slope
#
# The left column is a good action, $A = 1$, and the right column a bad one, $A = -1$. The upper row is the penalty $D$ at ratio
# $r$. The lower row is the slope that the optimiser follows: $\frac{d}{dr}(rA - D)$. A positive slope makes the action more
# likely, a negative slope makes it less likely, and at a slope of zero the sample has no effect.


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
# Every penalty is zero at $r = 1$ (dotted), and every slope is $A$ there: *near the old policy all of them are the plain policy
# gradient*. They differ further out. PPO's slope is zero from 1.2 and from 0.8 on. For a good action the slope of DPO decreases
# smoothly. For a bad action DPO does something that PPO never does: below some ratio its slope is *positive*. The searched
# drift behaves in the opposite way: a good action is clipped as by PPO, and the probability of a bad one may continue to fall,
# with a reduced slope.
#
# ## All advantages
#
# The next figure has the same quantities for every pair of log ratio and advantage. The slope is divided by $A$: 1 (white) means
# that the drift has no effect, 0 (orange) that a further change has no gain, and dark red, inside a black line, that the gradient
# points back to the old policy. In which corners does each drift act?

# %%
plots.drift_landscape({label: drift for label, drift in drifts.items() if label != "none (A2C)"})

# %% [markdown]
# Both formulas act in two corners only: good actions that have become more likely, and bad ones that have become less likely. In
# these samples the update has already made its intended change. In the other two corners the policy has moved in the wrong
# direction, and nothing should hinder its return. A network can act anywhere. This one started from PPO, and acts in the same two
# corners. It has changed the lower one: for actions that are only slightly bad the clip is absent. (The specks along $A = 0$ have
# no weight: the slope there is divided by a number near zero.)
#
# ## The rollback of DPO
#
# For $A < 0$, DPO's slope is $A\,(1 - \tanh^2(A \log r / \beta) / r)$ below $r = 1$, so it changes sign where
# $\tanh^2(A \log r / \beta) = r$. This is the **rollback**: if the probability of a bad action fell too far within one update, the
# gradient increases it again. At which ratio does it start?

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
# The worse the action, the earlier the rollback starts. PPO's clip only removes the gradient that lowers a bad action. Other
# samples can still lower it through the shared network, and nothing in PPO increases it again.
#
# ## The laws, and their check
#
# Three laws hold for every advantage and at every moment of training:
#
# $$ D(r, A) \ge 0, \qquad D(1, A) = 0, \qquad \frac{\partial D}{\partial r}(1, A) = 0. $$
#
# An unchanged policy has no penalty, no change is rewarded, and a *small* change has no penalty to first order. With exact
# expectations these laws make each mirror-learning update an improvement. LPO satisfies them by construction: its features vanish
# at $r = 1$, it has no bias, and a relu with a small slack keeps the result non-negative, and flat around $r = 1$. The laws
# therefore hold for all weights, both the searched ones and random ones:

# %%
for label, drift in drifts.items():
    lo.verify_drift(drift)
    print(f"{label}: a drift")
lo.verify_drift(drifts["LPO"], num_draws=3 if SMALL else 20)
print("LPO, with weights redrawn again and again: a drift")

# %% [markdown]
# The next cell checks three functions that violate a law. Each looks harmless.

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
# The second is the usual estimate of a KL divergence. Its *mean* over the old policy is never negative, but its value for a single
# sample can be, and the change is then rewarded. Adding $1 - r$, whose mean is zero, corrects it. The result is MDPO's drift,
# `lo.KL`.
#
# ## The effect of time
#
# A *time-aware* drift (TA-LPO, Jackson et al. 2024) also reads $n/N$, the fraction of training that is over. A search can then find
# a drift that allows large changes early and small changes late. The fraction **multiplies** the features $x$: the network reads
# $[x, \tfrac{n}{N} x]$, sixteen numbers that still vanish at $r = 1$. The next figure shows one such network at three moments. It
# started as the LPO above, independent of time, and evolution continued from there. One set of weights can be three drifts. Is it so
# here?

# %%
ta_lpo = lo.load("ta_lpo_2026_11").drift
LIFETIME = 1e6  # environment steps
moments = {f"TA-LPO, n/N = {f:g}": lo.Progress(f * LIFETIME, LIFETIME) for f in (0.0, 0.5, 1.0)}
styles |= dict(zip(moments, zip(COLOURS, ("-", "--", "-."), strict=False), strict=False))
slices(dict.fromkeys(moments, ta_lpo), moments)

# %% [markdown]
# It is not: the three lines look the same. Five short steps of evolution found a change of LPO that is the same at all times. The
# name TA-LPO alone does not show that a drift depends on time. The next figure is over all advantages. Blue is a slope that neither
# formula has: *larger* than without a drift.

# %%
plots.drift_landscape({"TA-LPO": ta_lpo}, fractions=(0.0, 0.5, 1.0))

# %% [markdown]
# A later search found numbers that do change. `ta_lpo` is PPO's clip with a width for each sign of $A$, and with weights around it.
# Each of these is a formula in $n/N$ and $\log_{10} N$. The figure shows the weights; a dashed line is PPO's value.

# %%
later = lo.load("ta_lpo")
for name, formula in later.formulas().items():
    print(f"{name}: {formula}")
plots.schedules(later)

# %% [markdown]
# A network could change over a life too. At $n/N = 0$ the second half of the features is zero, and it grows with time: the first layer is
# $W_1 + \frac{n}{N} W_2$. The result is a drift at each moment. Why is $n/N$ not simply *appended* to the features, as in other
# networks?

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
# Because $n/N$ does not vanish at $r = 1$: an unchanged policy would have a penalty.
#
# ## The effect on a policy
#
# The smallest agent has one state, four actions, and a softmax over four logits. The old policy and the advantages are known, so
# there is no noise. One update is many epochs of gradient ascent on $\sum_a \pi_\text{old}(a)\,(r_a A_a - D(r_a, A_a))$, always
# with the same old data, as in PPO. **How far does the policy move before the drift stops it?**

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
# Each line is an action. Without a drift the update approaches the policy that always takes the best action, from one batch of
# data. PPO stops early, one step beyond its clip. DPO allows good actions to grow further, and holds the bad action near the start
# of its rollback. The action of advantage 0 falls: at $A = 0$ DPO's drift is 0 as well, so nothing holds this action, and the good
# actions take its probability. MDPO's drift does not depend on $A$, and holds every action. LPO and TA-LPO hold the best action near
# PPO's clip, where it oscillates. The second best action grows to twice its probability, and the bad ones continue to fall. What
# happens in the first epoch?

# %%
first = np.stack([np.asarray(ratios[1]) for ratios in updates.values()])
print("ratios after one epoch:", np.round(first[0], 4))
print("largest difference between drifts:", f"{np.abs(first - first[0]).max():.1g}")

print("\nratios after all epochs, and KL(old, new):")
for label, ratios in updates.items():
    print(f"{label:26}", np.round(np.asarray(ratios[-1]), 2), f"{float(-old @ jnp.log(ratios[-1])):.3f}")

# %% [markdown]
# After one epoch all are equal: this is the meaning of "zero and flat at ratio 1". A drift acts from the second gradient step on.
# *An objective can differ from A2C only if data is used more than once*. With one step per rollout, a change of the drift has no
# effect.
#
# The next notebook shows how a search finds a drift.
