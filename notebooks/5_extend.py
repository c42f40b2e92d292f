# %% [markdown]
# # 5. Extend it
#
# Four things of your own, one cell each: a drift, an environment, an evolution strategy, and an estimator of
# meta-gradients. None of them needs a change to the toolkit. It takes some minutes on two cores.

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

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment

import discover
import envs
import learned_objectives as lo
from discover import plots
from discover.evolution import STRATEGIES
from discover.metagrad import ESTIMATORS
from learned_objectives.mirror import generalised_advantage, normalise

# %%
SMALL = "DISCOVER_NOTEBOOK_SMALL" in os.environ  # tiny sizes, which show that the code runs and nothing else

seeds = 2 if SMALL else 16  # agents behind each curve
life = 4_096 if SMALL else 40_960  # environment steps in which they learn
short_life = 2_048 if SMALL else 10_240  # and in the searches
generations = 2 if SMALL else 8
population = 4 if SMALL else 24
meta_gradients = 2 if SMALL else 20
scratch = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A drift
#
# A drift is a class with an equation. This one is the quadratic penalty of Simple Policy Optimization (Xie et al. 2024,
# [arXiv:2401.16025](https://arxiv.org/abs/2401.16025)):
#
# $$D(r, A) = \frac{|A|}{2\varepsilon}\,(r - 1)^2.$$
#
# The gain $rA - D$ is highest at $r = 1 \pm \varepsilon$, where PPO's clip begins to cut; but where the clip goes flat,
# this one pulls back. Fields that are arrays or numbers are leaves: a search could move `epsilon`. `lo.register` lets
# `save` and `load` know the class. `verify_drift` checks the laws of mirror learning, here for fifty redraws of the
# leaves as well, which is why it matters that only epsilon's magnitude counts.


# %%
@lo.register
class Quadratic(lo.Drift):
    """D = |A| (r - 1)^2 / (2 |epsilon|). Reference: Xie et al. 2024, arXiv:2401.16025."""

    epsilon: jax.Array | float = 0.2

    def __call__(self, log_ratio, advantage, progress=None):
        return jnp.abs(advantage) * jnp.expm1(log_ratio) ** 2 / (2 * jnp.abs(self.epsilon))


lo.verify_drift(Quadratic(), num_draws=50)

# %% [markdown]
# What is not a drift is told so in a sentence. A penalty of |log r| has a kink at the old policy, so even there it
# would hold the policy gradient back:

# %%
try:
    lo.verify_drift(lambda log_ratio, advantage, progress: jnp.abs(log_ratio))
except lo.DriftLawError as error:
    print(error)

# %% [markdown]
# **Where does it differ from the clip?** The slope is 1 (pale) where nothing holds the agent back and 0 (red) where
# there is nothing to gain; beyond the black line it pushes back to the old policy. Blue is a slope above 1: the policy
# has moved the wrong way, and is pushed harder than the gain alone would.

# %%
plots.drift_landscape({"PPO": lo.Clip(), "quadratic": Quadratic()})

# %% [markdown]
# **Does it train as well as PPO?** The same agents, settings and seeds; only the drift differs. Intervals are 95% over
# seeds.

# %%
comparison = discover.evaluate(
    {"PPO": "ppo", "quadratic": lo.Mirror(drift=Quadratic())},
    ["CartPole-v1"],
    total_steps=life,
    num_seeds=seeds,
    agent=discover.recipes.quickstart().agent,
)
print(comparison.table())
plots.learning_curves(comparison.curves[next(iter(comparison.curves))], title="CartPole")

# %% [markdown]
# It is saved with the record of where it comes from, and loaded wherever the class is registered.

# %%
lo.save(lo.Mirror(drift=Quadratic(0.2)), scratch / "quadratic.safetensors", record={"from": "notebook 5"})
print(lo.load(scratch / "quadratic.safetensors").drift)
print(lo.record(scratch / "quadratic.safetensors"))

# %% [markdown]
# ## An environment
#
# Environments speak the gymnax 1.0 interface: `reset_env` and `step_env` are pure functions of a key, a state and
# parameters, all three of them arrays. In this one a kite is blown about by gusts, and the agent lets it rise or sink
# to keep it near a height that is drawn anew in each episode. Nothing ends an episode but its time limit, which is
# `max_steps_in_episode` in the parameters; `step_env` returns five values, and whether the task itself ended is the
# fourth.


# %%
@struct.dataclass
class Wind:
    gust: jax.Array  # f32[], standard deviation of the push per step
    max_steps_in_episode: jax.Array  # i32[]


@struct.dataclass
class Flight:
    height: jax.Array  # f32[]
    target: jax.Array  # f32[]
    time: jax.Array  # i32[], steps since the start


class Kite(Environment):
    name = "Kite"
    num_actions = 3  # sink, hold, rise

    @property
    def default_params(self):
        return Wind(jnp.float32(0.05), jnp.int32(50))

    def reset_env(self, key, params):
        target = jax.random.uniform(key, minval=-1.0, maxval=1.0)
        state = Flight(jnp.float32(0.0), target, jnp.int32(0))
        return self.show(state), state

    def step_env(self, key, state, action, params):
        push = 0.1 * (action - 1.0) + params.gust * jax.random.normal(key)
        state = state.replace(height=jnp.clip(state.height + push, -2.0, 2.0), time=state.time + 1)
        reward = jnp.exp(-10.0 * (state.height - state.target) ** 2)
        return self.show(state), state, reward, jnp.bool_(False), {"discount": jnp.float32(1.0)}

    def show(self, state):
        return jnp.stack([state.height, state.target])

    def observation_space(self, params):
        return spaces.Box(-2.0, 2.0, (2,), jnp.float32)

    def action_space(self, params=None):
        return spaces.Discrete(3)


kite = Kite()
envs.check(kite, kite.default_params)

# %% [markdown]
# `check` passes: shapes and types are right under `jit`, `vmap` and `scan`, flags and discounts agree, and the time
# limit truncates. It tells what is wrong in a sentence. For an environment that is gymnax but not quite of this kind,
# `envs.Uniform` takes the differences out.
#
# **Can an agent learn it?** Once it has a name, everything that takes one takes it: `train`, `evaluate`, the `envs` of a
# recipe. The return is the sum of 50 rewards, of which none is above 1.

# %%
envs.register("Kite", Kite)
comparison = discover.evaluate(
    ["ppo", "a2c"], ["Kite"], total_steps=life, num_seeds=seeds, agent=discover.AgentConfig(learning_rate=3e-3)
)
print(comparison.table())
(curves,) = comparison.curves.values()
plots.learning_curves(curves, title="Kite")

# %% [markdown]
# ## An evolution strategy
#
# The outer loop takes any distribution-based strategy of [evosax](https://github.com/RobertTLange/evosax) by its name.
# There are these:

# %%
print(", ".join(sorted(STRATEGIES)))

# %% [markdown]
# OpenES moves its mean along an estimated gradient, with Adam and a fixed step size. SNES also adapts how far it
# perturbs each single number, and brings its own recombination weights: in `EvolutionConfig` only `population`, `sigma`
# (where it starts) and how lives are shared concern it. Both search for a drift from none, on CartPole, with lives even
# shorter than the quickstart's.

# %%
results = {}
for strategy in ("Open_ES", "SNES"):
    recipe = discover.recipes.quickstart()
    recipe = replace(
        recipe,
        total_steps=short_life,
        generations=generations,
        evaluation_seeds=seeds,
        checkpoint_every=generations,
        evolution=replace(recipe.evolution, strategy=strategy, population=population),
    )
    results[strategy] = discover.meta_train(recipe, scratch / strategy, quiet=True)

# %% [markdown]
# **Which of the two climbs faster here?** Solid: the mean of the search over its evaluation lives, with one standard
# error. Thin: the population, one life each.

# %%
figure, axis = plt.subplots(figsize=(8, 3.8), layout="constrained")
for colour, (strategy, result) in zip(plots.COLOURS, results.items(), strict=False):
    population_mean = [
        (row["generation"], row["fitness"]["CartPole-v1"]["mean"]) for row in result.rows if "fitness" in row
    ]
    axis.plot(*zip(*population_mean, strict=True), color=colour, linewidth=0.8, alpha=0.7)
    seen = [(row["generation"], row["evaluation"]["CartPole-v1"]) for row in result.rows if "evaluation" in row]
    x, y = np.array([g for g, _ in seen]), np.array([values for _, values in seen], float)
    plots.band(axis, x, y.T, colour, strategy)
axis.set(xlabel="generation", ylabel="return at the end of a life", title="CartPole")
axis.xaxis.get_major_locator().set_params(integer=True)
axis.grid(alpha=0.25)
plots.legend(axis, f"{plots.BAND}\nthin: population's mean")

# %% [markdown]
# One search each, eight generations of lives this short: enough to see that both run, not to say which is better, and
# hardly to see either climb. For that, repeat it with several `seed`s and a step size tuned for each.
#
# ## An estimator of meta-gradients
#
# An estimator is one function: it sees a window of an agent's life (the agent before and after its updates, and what
# the agent met after them) and returns a loss whose gradient is the meta-gradient. The built-in ones weigh that
# experience by advantages, from a critic trained on the side. This one is plain REINFORCE, without any critic: each
# action is weighed by the discounted sum of the rewards that followed. That sum is what a generalised advantage is when
# λ = 1 and the critic says zero.


# %%
def reinforce(search, objective, member, seen):
    """-mean[log pi(a|s) G], G the discounted sum of the rewards that follow, normalised."""
    silent = seen.outer._replace(
        critic=jnp.zeros_like(seen.outer.critic), next_critic=jnp.zeros_like(seen.outer.next_critic)
    )
    returns = generalised_advantage(silent, gamma=search.config.gamma, gae_lambda=1.0)
    return search.policy_loss(seen.after, seen.outer, jax.lax.stop_gradient(normalise(returns)))


ESTIMATORS["reinforce"] = reinforce  # and it has a name that recipes know

# %% [markdown]
# A few meta-gradients with it and with the default, over an LPG in small grid worlds (notebook 4 explains both). **Do
# the two see the same problem?** Shown is the mean reward per step of the agents while they are being trained by the
# rule.

# %%
rewards = {}
for estimator in ("debiased", "reinforce"):
    recipe = discover.recipes.lpg_small()
    recipe = replace(
        recipe,
        total_steps=20 * 1280,  # twenty updates
        generations=meta_gradients,
        evaluate_every=meta_gradients,
        evaluation_seeds=4,
        checkpoint_every=meta_gradients,
        metagrad=replace(recipe.metagrad, estimator=estimator, members=8, chunk=4, learning_rate=1e-2),
    )
    result = discover.meta_train(recipe, scratch / estimator, quiet=True)
    rewards[estimator] = [row["meta"]["reward"] for row in result.rows if "meta" in row]

figure, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
for colour, marker, (estimator, values) in zip(plots.COLOURS, "os", rewards.items(), strict=False):
    axis.plot(range(1, len(values) + 1), values, color=colour, marker=marker, markersize=4, label=estimator)
axis.set(xlabel="meta-gradients", ylabel="reward per step of the agents")
axis.xaxis.get_major_locator().set_params(integer=True)
axis.grid(alpha=0.25)
plots.legend(axis)

# %% [markdown]
# Both begin with the same rule, agents and worlds, so the curves begin together; the large rises and falls, which they
# share, are worlds that come and go as lives end. Where the curves part, the rules have. So few steps do not rank the
# two. They show that a new estimator is a function of a few lines.
#
# ## Give it back
#
# A new drift belongs into `learned_objectives/drifts.py` with its equation and one line in the family of
# `tests/test_drifts.py`, by which it inherits every law. `CONTRIBUTING.md` has the rest.
