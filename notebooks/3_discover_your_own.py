# %% [markdown]
# # 3. Discover your own
#
# The first two notebooks used objectives that were already searched. In this one you run a search: evolution starts from *no
# drift*, trains agents on CartPole with slightly different drifts, keeps the changes that help, and writes a file that any PPO
# can load. It takes about ten minutes on two cores. You stop the search and resume it. At the end you compare your drift with
# PPO, also on an environment that was not part of the search.

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
# Every size in this notebook is in the next cell. With `DISCOVER_NOTEBOOK_SMALL` in the environment everything runs in under a
# minute. That shows only that the code works.

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
# A `Recipe` is a whole search as one frozen value: what is searched, where, and how. `discover.recipes` has about a dozen. We take
# the smallest and change it with `dataclasses.replace`. You make your own recipe in the same way.
#
# | field | meaning | here |
# |---|---|---|
# | `name` | part of the record of the result | yours |
# | `seed` | all randomness of the search follows from it; another seed finds another drift | 1 |
# | `generations` | steps of the search | the quickstart's 20 |
# | `evaluate_every` | generations between evaluations of the search's *mean*, the drift at its centre | 2 |
# | `evaluation_seeds` | agents trained in one evaluation, on keys that the search does not use | 16 |
# | `checkpoint_every` | generations between two checkpoints, the most that an interruption can lose | 5 |
# | `total_steps` | environment steps in one life. The fitness of a drift is the return after *this* time | 40 updates' worth |
# | `search.population` | drifts tried per generation. They come in pairs, mean + ε and mean − ε | 32 |
#
# The values that we keep from the quickstart matter as well. `objective.start` is "none": the search begins without a drift, not at PPO.
# `objective.width` is 32: the drift is a small network, of 288 numbers. The agents take eight epochs at a high learning rate, with which a
# policy gradient without a drift becomes unstable. A drift can therefore improve the return.

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
    search=replace(recipe.search, population=population),
)
pprint(recipe, width=110)

# %% [markdown]
# ## Search
#
# `meta_train` prints a line after each generation. *population* is the mean return of the agents that were trained with the drifts
# of this generation. *mean*, in generations with an evaluation, is the return of new agents with the drift at the centre of the
# search. The mean is the result of the search. The first generation compiles, so its estimate of the remaining time is too
# long.
#
# We run half of the search first.

# %%
half = discover.meta_train(replace(recipe, generations=generations // 2), out)

# %% [markdown]
# **What is the progress so far?** The light line is the population, one life each. The dark line is the mean of the search, with a
# band of one standard error over its evaluation lives. The population is below the mean, because its members are the mean
# with noise on every number.

# %%
plots.search_curve(half.rows, title="Half way:")

# %% [markdown]
# ## Stop and resume
#
# To stop a search, interrupt the kernel (the square button above, or Ctrl-C on the command line). The search finishes the
# current generation, writes a checkpoint, and returns. If the machine fails, only the generations since the last checkpoint
# are lost. *The same call on the same directory resumes the search*, and gives the same file as an uninterrupted
# run. Only `generations` may differ between the two calls. We use this here: the first call was for half of the generations, and
# this one is for all of them.
#
# (If all generations are complete, the call only returns the result.)

# %%
result = discover.meta_train(recipe, out)

# %% [markdown]
# **Did the search improve the mean, and does it still improve?** If the dark line still rises at the right edge, more
# generations may help. If its band is wide, the evaluations are too few for a conclusion.

# %%
plots.search_curve(result.rows, title="The whole search:")

# %% [markdown]
# The exported objective is the *mean with the best evaluation*, and not the best candidate: among many noisy lives the best one is
# mostly chance. The file contains the record of its search.

# %%
record = lo.record(out / "objective.safetensors")
print("files:           ", ", ".join(sorted(path.name for path in out.iterdir() if not path.name.startswith("."))))
print("from generation: ", record["generation"], "of", record["generations"])
print(f"learned from:     {record['env_steps']:,} environment steps")

# %% [markdown]
# ## Compare
#
# The score that the search reports is biased, because the search selected its drift by that score. We therefore train new agents on
# keys that the search did not use. All else is equal: the same agents, settings and seeds with no drift, with PPO's
# clip, and with your drift. The environments are CartPole, and Acrobot, which was not part of the search. The brackets are 95%
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
# The second table has both environments on one scale. On it 0 is a random policy, and 1 is PPO after a usual, much
# longer life.
#
# If the interval of *discovered* is above that of *no drift*, the search found an improvement. Apply the same rule to
# PPO: where the intervals overlap, these seeds do not show a difference. A longer search with more lives per
# drift can show one. PPO's clip was designed by hand. This search starts from no drift and takes minutes.
#
# **When in their lives do the agents differ?** Bands are one standard error over seeds. The first points are of
# the few episodes that had ended by then. In Acrobot, where a short episode is a good one, these points are too high.

# %%
curves_cartpole, curves_acrobot = comparison.curves.values()
plots.learning_curves(curves_cartpole, title="CartPole, where the drift was found")

# %%
plots.learning_curves(curves_acrobot, title="Acrobot, never seen")

# %% [markdown]
# ## The drift
#
# **Where does your drift limit an agent?** On the left is the drift itself, over the log ratio log r of new to
# old policy and the advantage A. On the right is the slope of the objective r A − D, divided by A: 1 (pale) where
# the drift has no effect, 0 (red) where a change has no gain. Beyond the black line the gradient points back to
# the old policy. An agent that makes a good action more likely moves to the right in the upper half. One that makes a bad action
# less likely moves to the left in the lower half.

# %%
plots.drift_landscape({"PPO": lo.Clip(), "discovered": result.objective.drift})

# %% [markdown]
# Where the agents of the search had no samples, the values of the network are arbitrary. Read the centre of the figure, and not its
# corners.
#
# ## Use it
#
# The file needs `learned_objectives` alone: no environments, no evolution. This is the one line that changes in a PPO.
# Advantages are normalised per minibatch, as they were during the search.

# %%
mine = lo.load(out / "objective.safetensors")
log_ratio = jnp.array([-0.5, -0.1, 0.0, 0.1, 0.5])
advantage = jnp.array([-1.0, 1.0, 0.5, -0.5, 1.0])
policy_loss = -mine.surrogate(log_ratio, advantage).mean()
print(policy_loss)

# %% [markdown]
# With any weights it is a drift in the sense of mirror learning: never negative, and zero and flat where the
# policy has not changed. If a law failed, `verify_drift` would raise an error that names the law and the point.

# %%
lo.verify_drift(mine.drift)
print(sum(leaf.size for leaf in jax.tree.leaves(mine)), "numbers, and the laws hold")

# %% [markdown]
# ## Next steps
#
# * Search longer and in more than one place: `replace(recipe, generations=200, envs=("CartPole-v1", "Acrobot-v1"))`,
#   and `search=replace(recipe.search, lives=4)` for a fitness over four lives of each drift.
# * Start at PPO: `objective=discover.LPOConfig(start="ppo")`. The search then looks for improvements of the clip.
# * Search a drift that changes over a life: `objective="ta_lpo"`.
# * The same on the command line: `discover meta-train quickstart --out runs/mine --generations 200`. Another terminal can
#   resume it.
# * Notebook 4 searches for whole update rules, in grid worlds. Notebook 5 adds drifts, environments and searches of
#   your own.
