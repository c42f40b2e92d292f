# %% [markdown]
# # 3. Discover your own
#
# In the first two notebooks somebody else had done the searching. Here you search yourself: evolution starts from *no
# drift at all*, trains agents on CartPole with slightly different drifts, keeps what helps, and hands you a file that
# any PPO can import. It takes about ten minutes on two cores. On the way you stop the search and let it go on, and at
# the end you compare your drift with PPO on an environment that the search never saw.

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
from pprint import pprint

import jax
import jax.numpy as jnp

import discover
import learned_objectives as lo
from discover import plots

# %% [markdown]
# Every size in this notebook is in the next cell. With `DISCOVER_NOTEBOOK_SMALL` in the environment it all runs in
# under a minute, which shows that the code works and nothing else.

# %%
SMALL = "DISCOVER_NOTEBOOK_SMALL" in os.environ

generations = 2 if SMALL else 20
population = 4 if SMALL else 32  # drifts tried in each generation
life = 2_048 if SMALL else 20_480  # environment steps in which an agent learns
lives = 2 if SMALL else 16  # fresh agents in each evaluation and in the comparison
out = Path(tempfile.mkdtemp() if SMALL else "runs/my_drift")  # where the search leaves all it knows

# %% [markdown]
# ## The recipe
#
# A `Recipe` is a whole search as one frozen value: what is searched for, where, and how. `discover.recipes` holds a
# dozen; we take the smallest and change it with `dataclasses.replace`, which is how you would make one of your own.
#
# | field | meaning | here |
# |---|---|---|
# | `name` | goes into the record of what is found | yours |
# | `seed` | all randomness of the search follows from it; another seed finds another drift | 1 |
# | `generations` | steps of the search | the quickstart's 20 |
# | `evaluate_every` | generations between evaluations of the search's *mean*, the drift at its centre | 2 |
# | `evaluation_seeds` | agents trained in one evaluation, on keys that the search does not use | 16 |
# | `checkpoint_every` | generations between two checkpoints: what a lost machine costs you | 5 |
# | `total_steps` | environment steps in one life. Drifts are judged by what agents come to in *this* time | 40 updates' worth |
# | `evolution.population` | drifts tried per generation. They come in pairs, mean + ε and mean − ε | 32 |
#
# What we leave as the quickstart has it is as telling. `start="none"`: the search begins without any drift, not at PPO.
# `width=32`: the drift is a tiny network, of 288 numbers. And the agents make eight epochs at a high learning rate,
# which is more than a policy gradient without a drift survives: so there is something to discover.

# %%
recipe = discover.recipes.quickstart()
recipe = replace(
    recipe,
    name="my_drift",
    seed=1,
    generations=generations,
    evaluate_every=1 if SMALL else 2,
    evaluation_seeds=lives,
    checkpoint_every=1 if SMALL else 5,
    total_steps=life,
    evolution=replace(recipe.evolution, population=population),
)
pprint(recipe, width=110)

# %% [markdown]
# ## Search
#
# `meta_train` prints a line after each generation. *population* is the mean return of the agents trained with this
# generation's drifts; *mean*, in generations with an evaluation, is what fresh agents get from the drift at the centre
# of the search, which is the one that counts. The first generation compiles, so its estimate of the time left is too
# long.
#
# We run half of it first.

# %%
half = discover.meta_train(replace(recipe, generations=generations // 2), out)

# %% [markdown]
# **How far has it come?** The light line is the population, one life each; the dark one the mean of the search with a
# band of one standard error over its evaluation lives. The population lies below the mean, for its members are the mean
# with noise on every number.

# %%
plots.search_curve(half.rows, title="Half way:")

# %% [markdown]
# ## Stop, and go on
#
# A search is stopped by interrupting the kernel (the square button above, or Ctrl-C on the command line): it finishes
# the generation in flight, writes a checkpoint, and returns. Even a machine that dies costs no more than the
# generations since the last checkpoint. *The same call on the same directory goes on from there*, and comes to the very
# file that an uninterrupted run would have come to. Only `generations` may differ between the two calls, and that is
# what we use here: the first call was asked for half of them, and this one for all.
#
# (Called again when all is done, it does nothing but return the result.)

# %%
result = discover.meta_train(recipe, out)

# %% [markdown]
# **Did the search get anywhere, and had it stopped climbing?** If the dark line still rises at the right edge, more
# generations would have paid; if its band is wide, the evaluations are too few to tell.

# %%
plots.search_curve(result.rows, title="The whole search:")

# %% [markdown]
# What is exported is the *best evaluated mean*, never the luckiest candidate: among many noisy lives the best one is
# mostly luck. The file carries the record of how it was made.

# %%
record = lo.record(out / "objective.safetensors")
print("files:           ", ", ".join(sorted(path.name for path in out.iterdir() if not path.name.startswith("."))))
print("from generation: ", record["generation"], "of", record["generations"])
print(f"learned from:     {record['env_steps']:,} environment steps")

# %% [markdown]
# ## Compare
#
# The score that the search reports is not to be trusted: it chose its drift by it. So we train fresh agents, on keys
# that the search never used, and let nothing else differ: the same agents, settings and seeds with no drift, with PPO's
# clip, and with yours. And not only on CartPole, but on Acrobot, which the search has never seen. The brackets are 95%
# bootstrap intervals over seeds.

# %%
comparison = discover.evaluate(
    {"no drift": "a2c", "PPO": "ppo", "discovered": out},
    ["CartPole-v1", "Acrobot-v1"],
    total_steps=life,
    num_seeds=lives,
    seed=recipe.seed + 1000,
    agent=recipe.agent,
    loss=recipe.loss,
    progress=lambda line: print(line.partition("  IQM")[0]),
)
print("\nIQM of the final return over seeds, with its 95% interval\n")
print(comparison.table())

# %% [markdown]
# The second table puts both environments on one scale, on which 0 is a random policy and 1 is PPO after a usual, much
# longer life.
#
# How to read it: if the interval of *discovered* lies above that of *no drift*, the search found something. Against PPO
# be strict: where the intervals overlap, these seeds do not tell the two apart, and a longer search with more lives per
# drift is what would. PPO's clip is the work of years; that a search of minutes comes near it from nothing is the
# point.
#
# **When in their lives do the agents differ?** Bands are one standard error over seeds. The very first points are of
# the few episodes that had ended by then; in Acrobot, where a quick end is a good one, they flatter.

# %%
curves_cartpole, curves_acrobot = comparison.curves.values()
plots.learning_curves(curves_cartpole, title="CartPole, where the drift was found")

# %%
plots.learning_curves(curves_acrobot, title="Acrobot, never seen")

# %% [markdown]
# ## Look at it
#
# **What does your drift hold an agent back from?** On the left is the drift itself, over the log ratio log r of new to
# old policy and the advantage A. On the right is the slope of the objective r A − D, divided by A: 1 (pale) where
# nothing holds the agent back, 0 (red) where there is nothing to gain, and beyond the black line it pushes back towards
# the old policy. An agent that raises a good action moves to the right in the upper half; one that lowers a bad action
# moves to the left in the lower half.

# %%
plots.drift_landscape({"PPO": lo.Clip(), "discovered": result.objective.drift})

# %% [markdown]
# Where its agents never went, the drift is whatever the network happened to be: read the middle, not the corners.
#
# ## Use it
#
# The file needs `learned_objectives` alone: no environments, no evolution. This is the one line that a PPO changes.
# Advantages are normalised per minibatch, as they were during the search.

# %%
mine = lo.load(out / "objective.safetensors")
log_ratio = jnp.array([-0.5, -0.1, 0.0, 0.1, 0.5])
advantage = jnp.array([-1.0, 1.0, 0.5, -0.5, 1.0])
policy_loss = -mine.surrogate(log_ratio, advantage).mean()
print(policy_loss)

# %% [markdown]
# Whatever its weights are, it is a drift in the sense of mirror learning: never negative, and zero and flat where the
# policy has not changed. `verify_drift` would say in a sentence which law it broke, and where.

# %%
lo.verify_drift(mine.drift)
print(sum(leaf.size for leaf in jax.tree.leaves(mine)), "numbers, and the laws hold")

# %% [markdown]
# ## Where to go from here
#
# * Search longer and in more than one place: `replace(recipe, generations=200, envs=("CartPole-v1", "Acrobot-v1"))`,
#   and `evolution=replace(recipe.evolution, lives=4)` to judge each drift by four lives rather than one.
# * Start at PPO: `start="ppo"`. The search then asks what is better than a clip.
# * Let the drift change over a life: `objective="ta_lpo"`.
# * The same on the command line: `discover meta-train quickstart --out runs/mine --generations 200`; a new terminal can
#   resume it.
# * Notebook 4 searches for whole update rules, in grid worlds; notebook 5 adds drifts, environments and searches of
#   your own.
