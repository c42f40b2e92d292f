# %% [markdown]
# # 4. Grid worlds, LPG and regret
#
# A drift changes one line of PPO. A *learned policy gradient* (LPG) replaces the whole update rule, the notion of value
# included: a recurrent network says what an agent should do more of and what it should predict. Such a rule must be
# searched in many worlds, or it learns the one world by heart. So this notebook begins with worlds, then searches for a
# rule in them, twice: in worlds drawn at random, and in worlds that a curriculum picks by *regret*. It takes some
# minutes on two cores.

# %%
# On Colab: install the package, and keep the JAX and NumPy that are there. Anywhere else this cell does nothing.
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
    print("jax", version("jax"), "and discover-rl", version("discover-rl"))

# %%
# %matplotlib inline
import os
import tempfile
from dataclasses import replace
from functools import partial

import jax
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.backends.backend_agg import FigureCanvasAgg

import discover
import envs
import learned_objectives as lo
from discover import plots
from discover.insight import insights

# %%
SMALL = "DISCOVER_NOTEBOOK_SMALL" in os.environ  # tiny sizes, which show that the code runs and nothing else

UPDATE = 64 * 20  # environment steps between two updates of an agent: 64 environments for 20 steps
life = (10 if SMALL else 60) * UPDATE  # how long an agent lives
worlds = 4 if SMALL else 16  # worlds in each evaluation, one fresh agent in each
steps = 4 if SMALL else 100  # meta-gradients in a search
members = 4 if SMALL else 16  # agents in the middle of their lives, side by side
memory = 8 if SMALL else 64  # worlds that the curriculum remembers
runs = Path(tempfile.mkdtemp() if SMALL else "runs")

# %% [markdown]
# ## Worlds
#
# In every world the agent walks up, down, left, right or stays, and collects what lies in the cell that it enters. An
# object has a reward, a probability that collecting it ends the episode, and a probability per step that it comes back.
# A *level* is such a world as arrays, so that a thousand different ones are one `vmap`; a *distribution* by name draws
# them.
#
# **What do worlds of different distributions look like?** Green objects have a positive reward, orange ones a negative
# one, and the number is the reward. The ring is where the agent starts, dark cells are walls. Smaller worlds of a
# family are walled in to its largest size.


# %%
def side_by_side(figures):
    """Several figures as one."""
    pictures = []
    for figure in figures:
        figure.set_dpi(110)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pictures.append(np.asarray(canvas.buffer_rgba()))
    widths = [picture.shape[1] / picture.shape[0] for picture in pictures]
    _, axes = plt.subplots(1, len(pictures), figsize=(12, 12 / sum(widths)), width_ratios=widths, layout="constrained")
    for axis, picture in zip(axes, pictures, strict=True):
        axis.imshow(picture)
        axis.axis("off")


pictures = []
for name in ("gridworld/small", "gridworld/all", "gridworld/mazes", "gridworld/dense"):
    env, _ = envs.make(name)
    level = jax.jit(env.sample_level)(jax.random.key(2))
    pictures.append(plots.level_picture(env, level, title=name))
side_by_side(pictures)

# %% [markdown]
# ## How good can an agent be?
#
# The state of such a world is one number (the agent's cell, and which objects are there), and what happens next is
# known. So the best possible return of an episode can be computed, by dynamic programming over the time that is left:
#
# $$V_n(s) = \max_a \mathbb{E}\left[r + (1 - \mathrm{end})\, V_{n-1}(s')\right], \qquad V_0 = 0.$$
#
# That is `envs.gridworld.optimal_return(env, level)`. It is what lets us say how much of a world an agent has made its
# own, rather than just that one return is higher than another. From here on all worlds are from `gridworld/small`.
#
# **How close does a plain A2C come to it in its short life?** One fresh agent in each world, sorted by what there is to
# get. Returns are means over 64 episodes, in which objects come back by chance, so one may lie a little above the best
# possible expectation.

# %%
env, _ = envs.make("gridworld/small")
optimal_returns = jax.jit(jax.vmap(partial(envs.gridworld.optimal_return, env)))

a2c = discover.train("a2c", "gridworld/small", total_steps=life, num_seeds=worlds)
keys = jax.random.split(jax.random.key(1), worlds)
newborn = jax.jit(jax.vmap(a2c.agent.init))(a2c.task, keys)  # a table of zeros: every action is as likely


@jax.jit
@jax.vmap
def returns_of(task, state, key):
    return a2c.agent.evaluate(task, state, key, num_episodes=64).mean()


order = np.argsort(optimal_returns(a2c.task.env_params))
figure, axis = plt.subplots(figsize=(9.6, 3.6), layout="constrained")
for values, colour, marker, label in (
    (optimal_returns(a2c.task.env_params), plots.COLOURS[6], "_", "best possible"),
    (returns_of(a2c.task, a2c.state, keys), plots.COLOURS[0], "o", "A2C at the end of its life"),
    (returns_of(a2c.task, newborn, keys), plots.COLOURS[4], "x", "random policy"),
):
    axis.plot(np.asarray(values)[order], marker, color=colour, markersize=9 if marker == "_" else 6, label=label)
axis.set(xlabel="world, by its optimal return", ylabel="return of an episode", xticks=range(worlds))
axis.grid(alpha=0.25)
plots.legend(axis)

# %% [markdown]
# **What does it do there?** An episode of one of these trained agents, in the world where it gets the most. Press play.


# %%
def play(agent, task, state, key, num_steps):
    """The states of one episode, up to its end or so many steps."""

    def step(carry, key):
        obs, world = carry
        act_key, env_key = jax.random.split(key)
        policy = agent.networks.actor(state.params, obs)
        action = policy.sample(agent.networks.noise(act_key, ()))
        obs, world, _, terminated, _ = agent.env.step_env(env_key, world, action, task.env_params)
        return (obs, world), (world, terminated)

    obs, first = agent.env.reset(key, task.env_params)
    _, (rest, terminated) = jax.lax.scan(step, (obs, first), jax.random.split(key, num_steps))
    stop = 1 + int(np.argmax(terminated)) if terminated.any() else num_steps
    return jax.tree.map(lambda a, b: np.concatenate([a[None], b[:stop]]), first, rest)


which = int(np.argmax(returns_of(a2c.task, a2c.state, keys)))
task, state = jax.tree.map(lambda x: x[which], (a2c.task, a2c.state))
episode = play(a2c.agent, task, state, jax.random.key(0), 30)
HTML(plots.level_animation(env, task.env_params, episode, interval=250).to_jshtml(default_mode="once"))

# %% [markdown]
# ## What an LPG is
#
# An A2C agent learns a value, turns rewards into advantages with it, and makes actions with a positive advantage
# likelier. All of that is a formula that somebody wrote. In an LPG (Oh et al. 2020,
# [arXiv:2007.08794](https://arxiv.org/abs/2007.08794)) a recurrent network *U* with searched weights stands in its
# place. It runs *backward* over a trajectory, so that what it says about a step can depend on all that came after:
#
# | it sees, at each step | it says, for that step |
# |---|---|
# | the reward *r*, and whether the episode ended, *d* | the **policy target** π̂: how much likelier to make the action taken |
# | the probability π(a\|s) that the agent gave to its action | |
# | the predictions y(s) and y(s′), each squeezed to a number | the **prediction target** ŷ: what the agent should predict |
# | the discount γ | |
#
# The agent follows both: its loss is −log π(a|s) · π̂ + α KL(y(s) ‖ ŷ). The prediction y is a distribution over a few
# symbols, to which nobody gave a meaning; it takes the place of a value, and what it predicts is up to the search. The
# weights of *U* know nothing of worlds, observations or actions: a rule found in small grids can train any agent with
# discrete actions.
#
# **What does such a network say of a reward before it was searched at all?** A reward of 1 arrives at step 0; the
# curves show by how much it changes the two targets of the steps *before* it. A value-based rule would give more to
# steps just before the reward and less to those further back.

# %%
base = discover.recipes.lpg_small()
lpg = replace(
    base,
    name="my_lpg",
    total_steps=life,  # the recipe's lives are four times as long
    generations=steps,
    evaluate_every=steps // 4,
    evaluation_seeds=worlds,
    checkpoint_every=steps,
    metagrad=replace(base.metagrad, members=members, chunk=members // 2, learning_rate=8e-3),  # twice the recipe's
)
plots.credit(lpg.template())

# %% [markdown]
# ## Search by meta-gradient
#
# Evolution needs whole lives. A *meta-gradient* needs five updates: let every agent make five updates under the rule,
# see how well it then does, and differentiate that through the five updates with respect to the rule's weights. Sixteen
# agents do so side by side, each in a world of its own and each at another point of its life; when a life ends, a new
# agent is born into a new world.
#
# This is `recipes.lpg_small`, made shorter still: lives of 60 updates, 16 agents, 100 meta-gradients, and so twice its
# learning rate. The papers use 512 to 960 agents and thousands of meta-gradients. `reward` in the lines below is the
# mean reward per step of the agents in the middle of their lives.

# %%
found = discover.meta_train(lpg, runs / "lpg")

# %% [markdown]
# **Does the rule get better at training agents?** At each evaluation fresh agents live whole lives under the rule as it
# is, always in the same worlds, which the search never draws its agents into. The band is one standard error over
# worlds, and most of it is that worlds differ in what there is to get: look at the trend, not at the overlap.

# %%
plots.search_curve(found.rows, title="LPG in")

# %% [markdown]
# ## A curriculum of regret
#
# Worlds drawn at random are not all worth an agent's life. In some nobody gets anything; some are so easy that any rule
# masters them. GROOVE (Jackson et al. 2023, [arXiv:2310.02782](https://arxiv.org/abs/2310.02782)) prefers worlds in
# which the rule does worse than it could. When a life ends, the world is scored by its *algorithmic regret*,
#
# $$\text{regret} = R(\text{A2C trained in this world for as long}) - R(\text{our agent}),$$
#
# and is kept in a buffer. Half of the newborn go to a new world, half to one from the buffer, the more likely the
# higher its regret ranks. (This is *prioritised level replay*.) A2C is trained once per world, and its return
# remembered. Everything else is as before; `quiet=True` leaves the lines out.

# %%
small = discover.recipes.groove_small()
groove = replace(lpg, name="my_groove", curriculum=replace(small.curriculum, size=memory, chunk=4))
regretful = discover.meta_train(groove, runs / "groove", quiet=True)

# %% [markdown]
# **Which of the two searches got further?** The evaluation worlds are the same for both, drawn at random.

# %%
figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
for colour, label, rows in (
    (plots.COLOURS[0], "worlds at random", found.rows),
    (plots.COLOURS[1], "worlds by regret", regretful.rows),
):
    seen = [(row["generation"], row["evaluation"]["gridworld/small"]) for row in rows if "evaluation" in row]
    x, y = np.array([g for g, _ in seen]), np.array([values for _, values in seen])
    plots.band(axis, x, y.T, colour, label)
axis.set(xlabel="meta-gradients", ylabel=f"return at the end of a life,\nmean over {worlds} worlds")
axis.grid(alpha=0.25)
plots.legend(axis, plots.BAND)

# %% [markdown]
# ## Which worlds the curriculum prefers
#
# `last_state` gives back all that a run had in its last checkpoint; the curriculum's buffer of worlds is a part of it.

# %%
_, state = discover.last_state(runs / "groove")
buffer = state.search.buffer
filled = np.flatnonzero(buffer.number > 0)
print(f"{int(buffer.entered)} worlds have entered, {len(filled)} of {memory} slots are filled")

# %% [markdown]
# **Where does it go back to?** Above, the worlds that are likeliest to be replayed, with the regret of the last life there
# (`score`) and the chance to be the next; below, those that are least wanted.

# %%
plots.favourites(env, groove.curriculum, buffer, count=5)

# %% [markdown]
# **Is regret more than the size of the rewards?** Each dot is a world in the buffer. On the dashed line A2C gets all
# there is and our agent nothing. Below zero our agent beat A2C.

# %%
best = np.asarray(optimal_returns(buffer.task.env_params))
figure, axis = plt.subplots(figsize=(7, 3.8), layout="constrained")
axis.scatter(best[filled], np.asarray(buffer.score)[filled], s=28, color=plots.COLOURS[0], alpha=0.7)
limit = [0.0, float(best[filled].max())]
axis.plot(limit, limit, color="0.5", linestyle="--", linewidth=1, label="regret = all there is")
axis.axhline(0.0, color="0.6", linewidth=0.8)
axis.set(xlabel="best possible return of the world", ylabel="regret of the last life there")
axis.grid(alpha=0.25)
plots.legend(axis)
# %% [markdown]
# Where a dot lies near zero our rule does as well as A2C, however much there is to get. High up are the worlds in which
# A2C finds what our rule does not: not simply those with the largest rewards. A score is from the last life in its
# world, and for some worlds that was early in the search, when the rule knew little: the share of replay that goes to
# worlds not played for long (`staleness`) is there to correct that.
#
# ## On fresh worlds
#
# **How good are the rules that were found?** Fresh agents in fresh worlds, under A2C, under the network as it was
# before the search, and under the two that came out; everything else is equal. The brackets are 95% bootstrap intervals
# over worlds.

# %%
comparison = discover.evaluate(
    {"A2C": "a2c", "unsearched": lpg.template(), "LPG": found.objective, "LPG by regret": regretful.objective},
    ["gridworld/small"],
    total_steps=life,
    num_seeds=worlds,
    seed=1000,
)
print("IQM of the final return over worlds, with its 95% interval\n")
print(comparison.table())

# %%
(curves,) = comparison.curves.values()
plots.learning_curves(curves, title="gridworld/small, fresh worlds")

# %% [markdown]
# **And what does the searched network say of a reward?** The same picture as before the search.

# %%
plots.credit(found.objective)

# %% [markdown]
# **Has it found out what a value is?** In a grid world the truth is known: `envs.gridworld.policy_evaluation` says exactly
# what every action is worth under the agent's policy of the moment. Below, one agent is trained in one world by the rule
# that comes with the package (`lo.load("lpg")`, searched longer than ours), and what the rule says is set against
# what is true, from birth to the end of life. In the upper row a dot is an action in a state, in the lower row a state.

# %%
world = envs.levels.sample(jax.random.key(1), "medium")
told = insights(lo.load("lpg"), envs.make("gridworld/medium")[0], world, num_updates=life // UPDATE)
plots.targets(told)

# %% [markdown]
# Nobody told the rule what a value is, nor which sign it should have: the prediction is a distribution over eight symbols, and the
# rule reads one number out of it. Where the dots of the lower row lie along a line, falling or rising, that number *is* the
# value, found again; where the agent's policy has settled, all that it still does is worth the same, and there is no more to tell.
#
# ## What a search of minutes shows, and what not
#
# That it works: a network that began as noise comes to train agents, and its credit for a reward takes a shape that
# nobody wrote down. It does not show which of the two curricula is better. One seed of each, with intervals as wide as
# these, decides nothing; the advantage of regret that GROOVE reports is over thousands of meta-gradients, many seeds,
# and in worlds unlike those of the search. Nor is A2C at its best here: it has 60 updates, the length of life that the
# rules were searched for.
#
# * Longer: `discover meta-train lpg_small --out runs/lpg --generations 1000`.
# * With another idea of which worlds are worth it: `--curriculum.score max_mc`, or `optimal_regret`, against the best
#   possible return.
# * By evolution over whole lives, and with the agent's age as an input: `recipes.ta_lpg_small()`.
# * Other worlds: `envs.levels.available()` names them all.
