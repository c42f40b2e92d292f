# %% [markdown]
# # 5. Extend it
#
# This notebook adds five parts of your own: a drift, an environment, an evolution strategy, an outer loop, and an estimator of
# meta-gradients. None needs a change to the toolkit. It takes some minutes on two cores.

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
from discover.searches.evolution import STRATEGIES
from discover.searches.metagrad import ESTIMATORS
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
# The gain $rA - D$ is highest at $r = 1 \pm \varepsilon$, where PPO's clip begins to act. Beyond that point the clip is flat, and
# this drift pulls back. Fields that are arrays or numbers are leaves: a search could change `epsilon`. After `lo.register`,
# `save` and `load` can handle the class. `verify_drift` checks the laws of mirror learning, here also for fifty random draws of the
# leaves. For this reason only the magnitude of epsilon is used.


# %%
@lo.register
class Quadratic(lo.Drift):
    """D = |A| (r - 1)^2 / (2 |epsilon|). Reference: Xie et al. 2024, arXiv:2401.16025."""

    epsilon: jax.Array | float = 0.2

    def __call__(self, log_ratio, advantage, progress=None):
        return jnp.abs(advantage) * jnp.expm1(log_ratio) ** 2 / (2 * jnp.abs(self.epsilon))


lo.verify_drift(Quadratic(), num_draws=50)

# %% [markdown]
# `verify_drift` raises an error for a function that is not a drift. A penalty of |log r| has a kink at the old policy, so it
# would change the policy gradient even there:

# %%
try:
    lo.verify_drift(lambda log_ratio, advantage, progress: jnp.abs(log_ratio))
except lo.DriftLawError as error:
    print(error)

# %% [markdown]
# **Where does it differ from the clip?** The slope is 1 (pale) where the drift has no effect and 0 (red) where
# a change has no gain. Beyond the black line the gradient points back to the old policy. Blue is a slope above 1: the policy
# has moved in the wrong direction, and the gradient is larger than that of the gain alone.

# %%
plots.drift_landscape({"PPO": lo.Clip(), "quadratic": Quadratic()})

# %% [markdown]
# **Does it train as well as PPO?** Agents, settings and seeds are the same, and only the drift differs. Intervals are 95% over
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
# The drift is saved with its record. It can be loaded where the class is registered.

# %%
lo.save(lo.Mirror(drift=Quadratic(0.2)), scratch / "quadratic.safetensors", record={"from": "notebook 5"})
print(lo.load(scratch / "quadratic.safetensors").drift)
print(lo.record(scratch / "quadratic.safetensors"))

# %% [markdown]
# ## An environment
#
# An environment has the interface of gymnax 1.0: `reset_env` and `step_env` are pure functions of a key, a state and
# parameters, and all three are arrays. In this environment gusts move a kite, and the agent raises or lowers it
# to keep it near a height that is drawn again for each episode. Only the time limit ends an episode. It is
# `max_steps_in_episode` in the parameters. `step_env` returns five values. The fourth says whether the task itself
# ended.


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
# limit truncates. For an error it raises one sentence that names the problem. `envs.Uniform` adapts an environment of gymnax
# that differs a little from this interface.
#
# **Can an agent learn it?** An environment with a name can be used wherever a name is expected: `train`, `evaluate`, and the `envs` of a
# recipe. The return is the sum of 50 rewards. None of them is above 1.

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
# The next cell lists them:

# %%
print(", ".join(sorted(STRATEGIES)))

# %% [markdown]
# OpenES moves its mean along an estimated gradient, with Adam and a fixed step size. SNES also adapts the size of the
# perturbation of each number, and has its own recombination weights. Of `EvolutionConfig` it uses only `population`, `sigma`
# (the start value) and the fields about sharing lives. Both search for a drift from none, on CartPole, with lives even
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
        search=replace(recipe.search, strategy=strategy, population=population),
    )
    results[strategy] = discover.meta_train(recipe, scratch / strategy, quiet=True)

# %% [markdown]
# **Which of the two rises faster here?** Solid: the mean of the search over its evaluation lives, with one standard
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
# This is one search of each, with eight generations of very short lives. It shows that both run. It does not show which
# is better, and neither curve rises clearly. A comparison needs several `seed`s and a step size tuned for each.

# %% [markdown]
# ## An outer loop
#
# Evolution and meta-gradients are two outer loops. A third is two classes: its settings, each of which becomes a flag, and
# a search with `init`, `step` and `mean`. This one is random search with restarts. It tries candidates around a centre and
# moves to the best of them; after some steps without a gain it starts again. `problem.fitness` trains an agent under each
# candidate, on all devices. `problem.key` gives the randomness of a step, so a run that resumes continues exactly.
#
# The code is a file, because a process of its own will import it.

# %%
code = """from dataclasses import dataclass

import discover
import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class RandomSearch(discover.SearchConfig):
    population: int = 16  # candidates of a step
    sigma: float = 0.1  # standard deviation of the candidates around the centre
    patience: int = 2  # steps without a gain before a restart

    @property
    def items(self):
        return self.population

    def build(self, problem):
        return Searcher(self, problem)


class Searcher(discover.Search):
    def init(self):
        start, worst = (self.problem.template, jnp.float32(-jnp.inf)), jnp.int32(0)
        return start, start, worst  # the centre and the best so far, each with its fitness; steps without a gain

    def step(self, state, generation):
        (centre, score), best, waited = state
        noise_key, life_key = jax.random.split(self.problem.key("step", generation))
        leaves, structure = jax.tree.flatten(centre)
        keys = jax.random.split(noise_key, len(leaves))
        noise = [jax.random.normal(k, (self.config.population, 1, *x.shape)) for k, x in zip(keys, leaves)]
        tried = jax.tree.unflatten(structure, [x + self.config.sigma * z for x, z in zip(leaves, noise)])
        fitness = jnp.nan_to_num(self.problem.fitness(tried, life_key).mean((1, 2)), nan=-jnp.inf)
        top = jax.tree.map(lambda x: x[fitness.argmax(), 0], tried), fitness.max()
        if top[1] > best[1]:
            best = top
        centre, waited = (top, 0) if top[1] > score else ((centre, score), int(waited) + 1)
        restart = waited >= self.config.patience
        centre, waited = ((self.problem.template, jnp.float32(-jnp.inf)), 0) if restart else (centre, waited)
        return (centre, best, jnp.int32(waited)), {"top": float(top[1]), "restart": restart}

    def mean(self, state):
        return state[1][0]
"""
Path("kites.py").write_text(code)

# %% [markdown]
# The command line finds `kites:RandomSearch` in the working directory. **Does a killed run continue?** The first process is
# killed after its third generation, with no chance to save anything. The second is the same command.

# %%
command = [sys.executable, "-m", "discover", "meta-train", "quickstart", "--search", "kites:RandomSearch"]
command += ["--search.population", str(population // 2), "--total-steps", str(short_life), "--out", "random"]
command += ["--generations", "6", "--evaluate-every", "3", "--evaluation-seeds", str(seeds), "--checkpoint-every", "1"]
with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    for line in process.stdout:
        print(line, end="")
        if line.startswith("generation 3/"):
            process.kill()
print("killed, exit status", process.returncode, "\n")
print(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)

# %% [markdown]
# ## An estimator of meta-gradients
#
# An estimator is one function. It receives a window of an agent's life (the agent before and after its updates, and the
# experience of the agent after them) and returns a loss whose gradient is the meta-gradient. The built-in estimators weight this
# experience by advantages, from a critic that is trained separately. This one is plain REINFORCE, without a critic: the weight of each
# action is the discounted sum of the rewards after it. This sum is the generalised advantage for
# λ = 1 and a critic of zero.


# %%
def reinforce(search, objective, member, seen):
    """-mean[log pi(a|s) G], G the discounted sum of the rewards that follow, normalised."""
    no_critic = seen.outer._replace(
        critic=jnp.zeros_like(seen.outer.critic), next_critic=jnp.zeros_like(seen.outer.next_critic)
    )
    returns = generalised_advantage(no_critic, gamma=search.config.gamma, gae_lambda=1.0)
    return search.policy_loss(seen.after, seen.outer, jax.lax.stop_gradient(normalise(returns)))


ESTIMATORS["reinforce"] = reinforce  # and it has a name that recipes know

# %% [markdown]
# The next cell takes a few meta-gradients with it and with the default, over an LPG in small grid worlds (notebook 4 explains both). **Do
# both work on the same problem?** The figure shows the mean reward per step of the agents while the rule
# trains them.

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
        search=replace(recipe.search, estimator=estimator, members=8, chunk=4, learning_rate=1e-2),
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
# Both begin with the same rule, agents and worlds, so the curves begin together. Both curves have the same large rises and falls,
# because worlds change when lives end. Where the curves differ, the rules differ. So few steps do not rank the
# two. They show that a new estimator is a function of a few lines.
#
# ## Contribute it
#
# A new drift belongs in `learned_objectives/drifts.py`, with its equation and one line in the family of
# `tests/test_drifts.py`. It is then tested for every law. `CONTRIBUTING.md` has the rest.
