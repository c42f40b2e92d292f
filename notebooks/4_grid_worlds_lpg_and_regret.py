# %% [markdown]
# # 4. Grid worlds, LPG and regret
#
# A drift changes one line of PPO. A *learned policy gradient* (LPG) replaces the whole update rule, including the value: a
# recurrent network says which actions become more likely and what the agent predicts. Such a rule must be searched in many
# worlds. With one world it would fit only that world. This notebook first shows the worlds. It then searches a rule
# twice: in worlds drawn at random, and in worlds that a curriculum selects by *regret*. It takes some
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
from discover.agents.insight import insights

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
# In every world the agent moves up, down, left or right, or stays, and collects what is in the cell that it enters. An
# object has a reward, a probability that its collection ends the episode, and a probability per step that it returns.
# A *level* is such a world as arrays, so one `vmap` runs a thousand different ones. A *distribution* has a name and draws
# levels.
#
# **What do worlds of different distributions look like?** Green objects have a positive reward, orange ones a negative
# one, and the number is the reward. The ring is the start of the agent, and dark cells are walls. Smaller worlds of a
# family are surrounded by walls up to its largest size.


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
# ## The optimal return
#
# The state of such a world is one number (the cell of the agent, and which objects are present), and the dynamics are
# known. The best possible return of an episode can therefore be computed, by dynamic programming over the remaining time:
#
# $$V_n(s) = \max_a \mathbb{E}\left[r + (1 - \mathrm{end})\, V_{n-1}(s')\right], \qquad V_0 = 0.$$
#
# The function is `envs.gridworld.optimal_return(env, level)`. It gives the share of the possible return that an agent gets,
# and not only whether one return is higher than another. From here on all worlds are from `gridworld/small`.
#
# **How close is a plain A2C to it in a short life?** One new agent is trained in each world. The worlds are sorted by their
# optimal return. Returns are means over 64 episodes, in which objects return at random, so a mean may be a little above the
# best possible expectation.

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
# **What does the agent do?** The animation is an episode of one of these trained agents, in the world with its highest return. Press
# play.


# %%
def play(agent, task, state, key, num_steps):
    """The states of one episode, up to its end or `num_steps` steps."""

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
# An A2C agent learns a value, computes advantages from rewards and values, and makes actions with a positive advantage
# more likely. All of this is a hand-written formula. In an LPG (Oh et al. 2020,
# [arXiv:2007.08794](https://arxiv.org/abs/2007.08794)) a recurrent network *U* with searched weights replaces it.
# The network reads a trajectory *backward*, so its output for a step can depend on everything after it:
#
# | input at each step | output for that step |
# |---|---|
# | the reward *r*, and whether the episode ended, *d* | the **policy target** π̂: how much more likely to make the action taken |
# | the probability π(a\|s) that the agent gave to its action | |
# | the predictions y(s) and y(s′), each reduced to a number | the **prediction target** ŷ: what the agent should predict |
# | the discount γ | |
#
# The agent follows both: its loss is −log π(a|s) · π̂ + α KL(y(s) ‖ ŷ). The prediction y is a distribution over a few
# symbols without a given meaning. It takes the place of a value, and the search determines what it predicts. The
# network *U* has no input of the world, the observation or the action itself: a rule found in small grids can train any agent with
# discrete actions.
#
# **What is the output of the network for a reward before the search?** A reward of 1 is at step 0. The
# curves show its effect on the two targets of the steps *before* it. A value-based rule would give more to
# steps just before the reward and less to earlier steps.

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
    search=replace(base.search, members=members, chunk=members // 2, learning_rate=8e-3),  # twice the recipe's
)
plots.credit(lpg.template())

# %% [markdown]
# ## Search by meta-gradient
#
# Evolution needs whole lives. A *meta-gradient* needs five updates: let every agent make five updates under the rule,
# measure its return after them, and differentiate this return through the five updates with respect to the weights of the rule. Sixteen
# agents run side by side, each in its own world and each at another point of its life. When a life ends, a new
# agent starts in a new world.
#
# This is `recipes.lpg_small` with shorter sizes: lives of 60 updates, 16 agents, 100 meta-gradients, and twice its
# learning rate. The papers use 512 to 960 agents and thousands of meta-gradients. `reward` in the lines below is the
# mean reward per step of the agents in the middle of their lives.

# %%
found = discover.meta_train(lpg, runs / "lpg")

# %% [markdown]
# **Does the rule train agents better over the search?** At each evaluation new agents live whole lives under the current rule,
# always in the same worlds. The search never uses these worlds. The band is one standard error over
# worlds. Most of it comes from differences between worlds in what can be collected. Read the trend, and not the overlap.

# %%
plots.search_curve(found.rows, title="LPG in")

# %% [markdown]
# ## A curriculum of regret
#
# Not all random worlds are useful for a search. In some no agent gets a reward, and some are so easy that any rule
# solves them. GROOVE (Jackson et al. 2023, [arXiv:2310.02782](https://arxiv.org/abs/2310.02782)) prefers worlds in
# which the rule is worse than another method. When a life ends, the score of the world is its *algorithmic regret*,
#
# $$\text{regret} = R(\text{A2C trained in this world for as long}) - R(\text{our agent}),$$
#
# and the world is kept in a buffer. Half of the new agents get a new world, and half get one from the buffer, with a
# probability that grows with the rank of its regret. (This is *prioritised level replay*.) A2C is trained once per world, and its
# return is stored. The rest is as before. `quiet=True` omits the printed lines.

# %%
small = discover.recipes.groove_small()
groove = replace(lpg, name="my_groove", curriculum=replace(small.curriculum, size=memory, chunk=4))
regretful = discover.meta_train(groove, runs / "groove", quiet=True)

# %% [markdown]
# **Which search has the higher return?** The evaluation worlds are the same for both, drawn at random.

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
# ## The worlds that the curriculum selects
#
# `last_state` returns the state of the last checkpoint of a run. The buffer of worlds of the curriculum is a part of it.

# %%
_, state = discover.last_state(runs / "groove")
buffer = state.search.buffers[0]  # one for each environment
filled = np.flatnonzero(buffer.number > 0)
print(f"{int(buffer.entered)} worlds have entered, {len(filled)} of {memory} slots are filled")

# %% [markdown]
# **Which worlds are replayed?** The upper row has the worlds with the highest probability of replay, with the regret of the last life there
# (`score`) and the probability to be the next. The lower row has the worlds with the lowest probability.

# %%
plots.favourites(env, groove.curriculum, buffer, count=5)

# %% [markdown]
# **Is regret more than the size of the rewards?** Each dot is a world in the buffer. On the dashed line A2C gets the
# optimal return and our agent nothing. Below zero our agent got more than A2C.

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
# Where a dot is near zero, our rule does as well as A2C for any size of the rewards. The dots at the top are worlds in which
# A2C finds what our rule does not find. These are not simply the worlds with the largest rewards. A score is from the last life in its
# world. For some worlds this life was early in the search, when the rule was still weak. The share of replay for
# worlds without a recent life (`staleness`) corrects this.
#
# ## New worlds
#
# **How good are the discovered rules?** New agents are trained in new worlds with A2C, with the network before the
# search, and with the two results. All else is equal. The brackets are 95% bootstrap intervals
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
# **What is the output of the searched network for a reward?** The figure is the same as before the search.

# %%
plots.credit(found.objective)

# %% [markdown]
# **Does the prediction contain the value?** In a grid world the values are known: `envs.gridworld.policy_evaluation` gives the exact
# value of every action under the current policy of the agent. Below, one agent is trained in one world by the rule
# of the package (`lo.load("lpg")`, with a longer search than ours). The figure compares the outputs of the rule with
# the true values, from the start to the end of the life. In the upper row a dot is an action in a state, in the lower row a state.

# %%
world = envs.levels.sample(jax.random.key(1), "medium")
moments = insights(lo.load("lpg"), envs.make("gridworld/medium")[0], world, num_updates=life // UPDATE)
plots.targets(moments)

# %% [markdown]
# The search contains no definition of a value, nor of its sign: the prediction is a distribution over eight symbols, and the
# rule reads one number from it. Where the dots of the lower row are on a line, rising or falling, this number *is* a function of the
# value. Where the policy of the agent has settled, all actions that it still takes have the same value, and the figure has no further
# information.
#
# ## What a search of minutes shows
#
# It shows that the method works: a network that started as noise learns to train agents, and the credit that it gives for a reward has a shape
# that was not designed by hand. It does not show which of the two curricula is better. One seed of each, with intervals of this
# width, cannot decide it. The advantage of regret in the GROOVE paper is over thousands of meta-gradients, many seeds,
# and in worlds that differ from those of the search. A2C is also not at its best here: it has 60 updates, the length of life of the
# search.
#
# * A longer search: `discover meta-train lpg_small --out runs/lpg --generations 1000`.
# * Another score of the worlds: `--curriculum.score max_mc`, or `optimal_regret`, which is against the best
#   possible return.
# * Evolution over whole lives, with the age of the agent as an input: `recipes.ta_lpg_small()`.
# * Other worlds: `envs.levels.available()` lists them all.
