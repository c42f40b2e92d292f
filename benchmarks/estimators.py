"""Bias and variance of estimators of the outer gradient, against the exact one: `python -m benchmarks.estimators`; five minutes.

Evolution over windows. An inner problem is T steps of gradient descent with momentum on a quadratic; six numbers are its rates
and momenta, either constant in time or a schedule, and F is minus the sum over T / K windows of the mean loss in each. Its exact
gradient comes from automatic differentiation in float64. Perturbations, weights and sums are those of the search `rolling`
itself, whose mean stands still. An estimate is the sum over T / K generations, in which each of eight pairs lives for one life.
Where pairs begin at different times, neighbouring estimates share perturbations, so that variances are those of means over
batches of eight estimates, times eight.

Meta-gradients. A bandit with three arms; agents make three updates on eight actions each with an objective of three numbers. The
exact gradient of the expected reward after the third update is that of the sum over all outcomes of all updates, in float64.
`pathwise` is the same with the probabilities of outcomes held constant: what meta-gradients estimate, because they hold sampled
actions constant. Advantages are normalised, so an estimate has a scale of its own: it is fitted first.

    bias       |s mean - exact| / |exact|, with s = 1 for evolution and the best s for meta-gradients; with a bootstrap interval
    variance   trace(Cov) / |mean|^2 of one estimate
    cosine     of the mean with the exact gradient

Writes benchmarks/results/estimators.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments.spaces import Discrete
from jax.flatten_util import ravel_pytree

import learned_objectives as lo
from benchmarks.record import ROOT, provenance
from discover import recipes
from discover.agents.agent import Agent
from discover.agents.config import AgentConfig
from discover.results.statistics import Interval
from discover.runs.store import write_text
from discover.searches.curriculum import AssignedTask
from discover.searches.families import TunedPPOConfig
from discover.searches.metagrad import MetaGrad, MetaGradConfig
from discover.searches.problem import Problem
from discover.searches.recipe import Recipe
from discover.searches.rolling_search import RollingConfig
from discover.searches.whole_life import WholeLife, WholeLifeConfig
from envs.probes import Probe

SEED, SAMPLES = 20_261_128, 2000
STEPS, WINDOW, BATCH = 32, 4, 8
SIGMAS = (0.03, 0.3)
CURVATURES = np.array([1.0, 4.0, 10.0])


def schedule(numbers: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of numbers f32[T, 6], which may differ between steps: (rate, momentum) f32[T, 3]. Four nodes of a rate and a line of a
    momentum over time, the same for all coordinates: what acts early does not act late."""
    time = jnp.arange(STEPS) / (STEPS - 1)
    hats = jnp.maximum(1.0 - jnp.abs(3.0 * time[:, None] - jnp.arange(4)), 0.0)
    rates = 0.05 * jnp.exp((numbers[:, :4] * hats).sum(-1))
    momenta = jax.nn.sigmoid(-0.5 + numbers[:, 4] + numbers[:, 5] * time)
    return jnp.repeat(rates[:, None], 3, axis=1), jnp.repeat(momenta[:, None], 3, axis=1)


def constants(numbers: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same, of a rate and a momentum for each coordinate, which are constant in time."""
    return 0.05 * jnp.exp(numbers[:, :3]), jax.nn.sigmoid(-0.5 + numbers[:, 3:])


INNER = {"constants": constants, "schedule": schedule}


def windows(problem: str, numbers: jax.Array) -> jax.Array:
    """f[W]: minus the mean loss in each window, where the numbers f[W, 6] differ between windows."""
    curvatures = jnp.asarray(CURVATURES, numbers.dtype)

    def step(carry, settings):
        x, v = carry
        v = settings[1] * v - settings[0] * curvatures * x
        return (x + v, v), -0.5 * (curvatures * (x + v) ** 2).sum()

    ones = jnp.ones(3, numbers.dtype)
    settings = INNER[problem](jnp.repeat(numbers, WINDOW, axis=0))
    losses = jax.lax.scan(step, (ones, 0.0 * ones), settings)[1]
    return losses.reshape(-1, WINDOW).mean(-1)


def exact_descent(problem: str) -> np.ndarray:
    with jax.enable_x64(True):
        total = lambda n: windows(problem, jnp.broadcast_to(n, (STEPS // WINDOW, 6))).sum()
        return np.asarray(jax.grad(total)(jnp.zeros(6, "float64")))


def evolved(problem: str, estimator: str, sigma: float, estimates: int) -> np.ndarray:
    """f64[estimates, 6]: sums over the generations of a life."""
    config = RollingConfig(estimator=estimator, population=16, window=WINDOW, sigma=sigma, chunk=8, shaping="z_score")
    agent = AgentConfig(num_envs=2, num_steps=2, num_minibatches=1)
    recipe = Recipe(objective=TunedPPOConfig(), total_steps=4 * STEPS, agent=agent, search=config, seed=SEED)
    search = config.build(Problem(replace(recipe, loss=recipes.lpo_minatar().loss)))
    strategy = search.evolution.init(search.problem.key("start", 0))
    flat = lambda tree: jnp.concatenate([x.reshape(*x.shape[:2], -1) for x in jax.tree.leaves(tree)], axis=-1)
    start, _ = ravel_pytree(search.problem.template)

    # Of numbers f32[P, 2, W, 6]: those that candidates have had in each window of their lives.
    fitness = jax.jit(jax.vmap(jax.vmap(lambda numbers: windows(problem, numbers - start))))
    found, lived = [], {}
    for generation in range((1 + estimates) * search.windows):
        began = search.began(generation)
        population, told = search._perturbed(strategy, jnp.int32(generation), search.drawn(generation))
        lived[generation] = np.asarray(flat(population))
        ages = generation - began
        numbers = np.stack(
            [
                np.stack([lived[min(began[p] + w, generation)][p] for w in range(search.windows)], axis=1)
                for p in range(len(began))
            ]
        )
        f = jnp.take_along_axis(fitness(numbers), jnp.asarray(ages)[:, None, None], axis=-1)[..., 0]
        if estimator == "pes":
            population = search._persistent(told, jnp.int32(generation), began)
        weighted = search.weight(generation)[:, None] * f
        after = search.evolution.tell(jax.random.key(0), population, f[..., None], told, weighted)
        moment = jax.tree.leaves(after.opt_state[0].mu)[0]
        found.append(-np.asarray(moment, np.float64) / (1.0 - config.adam_b1))
    return np.array(found).reshape(1 + estimates, search.windows, -1)[1:].sum(1)  # the first lives do not fill it


ARMS = np.array([1.0, 0.2, -0.5])
WEIGHT = np.array([0.5, 0.2, 0.1])
UPDATES, ACTIONS, RATE = 3, 8, 2.0


class Bandit(Probe):
    """One state, three arms, one step."""

    name = "probe/bandit"

    def show(self, state):
        return jnp.int32(0)

    def reward(self, state, action):
        return jnp.asarray(ARMS, jnp.float32)[action]

    def observation_space(self, params):
        return Discrete(1)

    def action_space(self, params=None):
        return Discrete(3)


class Preference(lo.Objective):
    """Makes each action likelier by a number of its own."""

    weight: jax.Array  # f32[3]

    @property
    def critic_width(self):
        return 1

    def targets(self, rollout, progress):
        return self.weight[rollout.action]

    def loss(self, outputs, rollout, targets, progress):
        return -(outputs.log_prob * targets).mean(), {}


def exact_bandit() -> dict[str, np.ndarray]:
    """The gradient of the expected reward after the last update with respect to the three weights, by enumeration:

    theta' = theta + rate sum_k (n_k / n) w_k (e_k - pi),    n ~ Multinomial(n, pi)
    """
    counts = np.array([c for c in itertools.product(range(ACTIONS + 1), repeat=3) if sum(c) == ACTIONS])
    ways = np.array([math.factorial(ACTIONS) / math.prod(map(math.factorial, c)) for c in counts])

    def value(weight, constant):
        def outcomes(theta, left):
            pi = jax.nn.softmax(theta)
            if left == 0:
                return pi @ jnp.asarray(ARMS)
            share = counts / ACTIONS
            after = theta + RATE * ((share * weight) @ jnp.eye(3) - (share @ weight)[:, None] * pi)
            chance = ways * jnp.exp(counts @ jnp.log(pi))
            chance = jax.lax.stop_gradient(chance) if constant else chance
            return chance @ jax.vmap(lambda t: outcomes(t, left - 1))(after)

        return outcomes(jnp.zeros(3, "float64"), UPDATES)

    with jax.enable_x64(True):
        weight = jnp.asarray(WEIGHT)
        return {
            name: np.asarray(jax.jit(jax.grad(lambda w, c=c: value(w, c)))(weight))
            for name, c in (("exact", False), ("pathwise", True))
        }


META = {
    "debiased, window 1": {"estimator": "debiased", "window": 1},
    "debiased, window 3": {"estimator": "debiased", "window": 3},
    "standard, window 3": {"estimator": "standard", "window": 3},
    "mixed, m = 1": {"estimator": "mixed", "window": 3, "mixing": 1.0},
    "mixed, m = 0.5": {"estimator": "mixed", "window": 3, "mixing": 0.5},
    "bootstrapped, window 3": {"estimator": "bootstrapped", "window": 3, "bootstrap_updates": 1},
    "whole life": None,
}
QUIET = dict.fromkeys(("entropy_coef", "prediction_entropy_coef", "policy_target_coef", "prediction_target_coef"), 0.0)


def meta_gradients(settings: dict[str, Any] | None, estimates: int) -> np.ndarray:
    """f64[estimates, 3]: of newborn agents, uphill."""
    agent = Agent(
        Bandit(),
        AgentConfig(
            num_envs=ACTIONS // 2,
            num_steps=2,
            num_starts=2,
            num_epochs=1,
            num_minibatches=1,
            optimizer="sgd",
            learning_rate=RATE,
            anneal=False,
            max_grad_norm=1e9,
        ),
    )
    task = agent.task(agent.env.default_params, ACTIONS * UPDATES)
    drawn = AssignedTask(task, jnp.int32(-1), jnp.int32(0), jnp.float32(jnp.nan), jnp.float32(-jnp.inf))
    objective = Preference(jnp.asarray(WEIGHT, jnp.float32))

    def whole(key):
        return -WholeLife(WholeLifeConfig(base=2), agent, UPDATES).gradient(objective, task, key).gradient.weight

    def windowed_life(key):
        meta = MetaGrad(MetaGradConfig(**QUIET, **settings), agent)
        member = meta.birth(drawn, key, jnp.int32(UPDATES))
        return -jax.grad(lambda o: meta.window(o, member)[0])(objective).weight

    keys = jax.random.split(jax.random.key(SEED), estimates)
    return np.asarray(jax.jit(jax.vmap(whole if settings is None else windowed_life))(keys), np.float64)


def compared(found: np.ndarray, exact: np.ndarray, *, fitted: bool, batch: int) -> dict[str, Any]:
    """Bias, variance and cosine of estimates [n, D], of which batches are independent."""
    found = found.reshape(len(found) // batch, batch, -1).mean(1)

    def bias(mean):
        scale = mean @ exact / (mean @ mean) if fitted else 1.0
        return float(np.linalg.norm(scale * mean - exact) / np.linalg.norm(exact))

    rng, n = np.random.default_rng(0), len(found)
    again = [bias(found[rng.integers(0, n, n)].mean(0)) for _ in range(SAMPLES)]
    mean = found.mean(0)
    return {
        "bias": Interval(bias(mean), *map(float, np.percentile(again, (2.5, 97.5)))),
        "variance": float(batch * found.var(0).sum() / (mean @ mean)),
        "cosine": float(mean @ exact / np.linalg.norm(mean) / np.linalg.norm(exact)),
        "noise of the mean": float(np.sqrt(found.var(0).sum() / n) / np.linalg.norm(mean)),
        "estimates": n * batch,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lives", type=int, default=400, help="estimates of each kind of evolution")
    parser.add_argument("--agents", type=int, default=20_000, help="estimates of each meta-gradient")
    args = parser.parse_args()
    if args.lives < 10 * BATCH or args.lives % BATCH or args.agents < 10:
        parser.error(
            f"a variance needs at least 10 estimates, and lives are a multiple of {BATCH}, of which it needs 10."
        )
    report: dict[str, Any] = provenance() | {"seed": SEED, "evolution": {}, "meta-gradients": {}}
    for problem, sigma, estimator in itertools.product(INNER, SIGMAS, ("nres", "pes", "es_single")):
        exact = exact_descent(problem)
        row = compared(evolved(problem, estimator, sigma, args.lives), exact, fitted=False, batch=BATCH)
        report["evolution"][f"{problem}, {estimator}, sigma {sigma:g}"] = row | {"exact": exact.tolist()}
        _show(f"{problem}, {estimator}, sigma {sigma:g}", row)
    gradients = exact_bandit()
    report["exact of the bandit"] = {name: value.tolist() for name, value in gradients.items()}
    for name, settings in META.items():
        found = meta_gradients(settings, args.agents)
        report["meta-gradients"][name] = {
            f"against {which}": compared(found, each, fitted=True, batch=1) for which, each in gradients.items()
        }
        for which in gradients:
            _show(f"{name} against {which}", report["meta-gradients"][name][f"against {which}"])
    text = json.dumps(report, indent=1, default=lambda x: x._asdict())
    write_text(ROOT / "benchmarks/results/estimators.json", text + "\n")
    return 0


def _show(name: str, row: dict[str, Any]) -> None:
    b = row["bias"]
    print(
        f"{name}: bias {b.value:.3f} [{b.low:.3f}, {b.high:.3f}], variance {row['variance']:.3g}, cosine {row['cosine']:.3f}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
