"""Figures of update rules of LPG's family: how they hand out credit, and how near to the truth."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from discover.agents.insight import Insight
from discover.plots.style import COLOURS, LIFETIME, legend
from learned_objectives import LPG, Progress, Rollout, Statistics


def credit(lpg: LPG, *, steps: int = 20, fractions: Sequence[float] = (0.0, 0.5, 1.0)) -> Figure:
    """How an LPG hands a reward of 1 back to the steps before it: the change of its two targets that the reward makes, by
    steps before it; for each n/N where it depends on it. The agent here is at a loss: uniform actions and predictions."""
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    before = np.arange(steps)[::-1]
    for colour, fraction in zip(COLOURS, fractions if lpg.time_aware else (0.5,), strict=False):
        progress = Progress(jnp.float32(fraction * LIFETIME), jnp.float32(LIFETIME), Statistics.typical())
        with_it, without = (lpg.targets(_one_reward(lpg, steps, reward), progress) for reward in (1.0, 0.0))
        label = f"n/N = {fraction:g}" if lpg.time_aware else None
        axes[0].plot(before, (with_it.policy - without.policy)[:, 0], color=colour, label=label, marker=".")
        moved = jnp.abs(jnp.exp(with_it.prediction) - jnp.exp(without.prediction)).sum(-1)[:, 0]
        axes[1].plot(before, moved, color=colour, label=label, marker=".")
    axes[0].axhline(0.0, color="0.6", linewidth=0.8)
    axes[0].set(xlabel="steps before the reward", ylabel="change of the policy target")
    axes[1].set(xlabel="steps before the reward", ylabel="change of the prediction target (L1)")
    for axis in axes:
        axis.grid(alpha=0.25)
    if lpg.time_aware:
        legend(axes[1])
    return figure


def _one_reward(lpg: LPG, steps: int, reward: float) -> Rollout:
    zeros, no = jnp.zeros((steps, 1)), jnp.zeros((steps, 1), bool)
    critic = jnp.zeros((steps, 1, lpg.predictions))
    chance = jnp.full((steps, 1), -np.log(5.0), jnp.float32)  # of one action among five
    return Rollout(zeros, zeros, chance, critic, critic, zeros.at[-1].set(reward), no, no)


def targets(found: Sequence[Insight]) -> Figure:
    """The targets of a rule for its agent in a grid world, beside the true values, at moments of the agent's life.

    Above, each dot is an action in a state: the policy target that the rule gives it on average, and its true advantage under
    the policy of that moment. Below, each dot is a state: the number that the rule itself reads in the prediction that it asks
    for, and the true value. Where the dots climb, the rule has found out by itself what the value is for.
    """
    figure = Figure(figsize=(0.8 + 2.9 * len(found), 5.6), layout="constrained")
    axes = figure.subplots(2, len(found), squeeze=False, sharex="row", sharey="row")
    for each, (above, below) in zip(found, axes.T, strict=True):
        above.set_title(f"n/N = {each.fraction:g}, return {each.ret:.2f}", fontsize=10)
        above.scatter(each.advantage, each.policy_target, s=9, color=COLOURS[0], alpha=0.6, linewidths=0)
        below.scatter(each.value, each.reading, s=9, color=COLOURS[1], alpha=0.6, linewidths=0)
        above.set_xlabel("true advantage A(s, a)")
        below.set_xlabel("true value V(s)")
        for axis, x, y in ((above, each.advantage, each.policy_target), (below, each.value, each.reading)):
            varied = min(x.size, y.size) > 1 and x.std() > 0 and y.std() > 0
            text = f"r = {np.corrcoef(x, y)[0, 1]:.2f}" if varied else "r: none"
            axis.text(0.04, 0.96, text, transform=axis.transAxes, va="top", fontsize=9)
            axis.grid(alpha=0.25)
    axes[0, 0].set_ylabel("policy target, mean")
    axes[1, 0].set_ylabel("prediction target as the rule reads it, mean")
    return figure
