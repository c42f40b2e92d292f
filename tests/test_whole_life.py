"""Gradients through whole lives: those of plain reverse mode, in memory that hardly grows, and a search that follows them."""

import dataclasses
import math
from functools import cache
from typing import Any

import crash
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import discover
import learned_objectives as lo
from discover.agents import rollout as ro
from discover.agents.agent import Agent, AgentConfig
from discover.runs import recipes
from discover.searches.checkpointing import checkpointed_scan, segments
from discover.searches.curriculum import TASK, CurriculumConfig
from discover.searches.families import FormulaConfig, LPGConfig, TunedPPOConfig
from discover.searches.metagrad import LOOK
from discover.searches.problem import Problem
from discover.searches.recipe import Recipe
from discover.searches.whole_life import LifeGradient, WholeLife, WholeLifeConfig, clipped
from envs.gridworld import GridWorld, make_level
from learned_objectives.mirror import generalised_advantage, normalise

QUICK = {"xla_backend_optimization_level": 0}


def wide(tree):
    """In float64; call it where that is enabled."""
    return jax.tree.map(lambda x: x.astype("float64") if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


@pytest.mark.parametrize(
    ("length", "base", "expected"),
    [
        (1, 4, (1,)),
        (4, 4, (4,)),
        (5, 4, (2, 3)),
        (64, 4, (4, 4, 4)),
        (64, 8, (8, 8)),
        (65, 8, (4, 4, 5)),
        (250, 8, (6, 6, 7)),
    ],
)
def test_segments_are_as_few_and_as_small_as_reach_the_length(length, base, expected):
    assert segments(length, base) == expected


def test_segments_reach_every_length():
    for base in (2, 3, 8):
        for length in range(1, 300):
            sizes = segments(length, base)
            assert math.prod(sizes) >= length > base ** (len(sizes) - 1) or length == 1
            assert max(sizes) <= base


def rotated(weight):
    """A step of a recurrence whose derivative is not that of a fixed map: the index is in it."""

    def step(carry, index):
        x, count = carry
        x = jnp.tanh(weight @ x + 0.1 * jnp.sin(1.0 * index))
        return (x, count + 1), (x.sum(), index)

    return step


@pytest.mark.parametrize("length", [1, 2, 5, 7, 17, 64, 100])
@pytest.mark.parametrize("base", [2, 3, 8])
def test_it_is_the_scan_and_has_its_gradient(length, base):
    def total(weight, x, scan):
        (x, count), (sums, indices) = scan(rotated(weight), (x, jnp.int32(0)))
        return (x**2).sum() + (sums * jnp.cos(1.0 * indices)).sum(), (count, indices)

    plain = lambda step, init: jax.lax.scan(step, init, jnp.arange(length, dtype=jnp.int32))
    ours = lambda step, init: checkpointed_scan(step, init, length=length, base=base)
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        weight, x = jnp.asarray(rng.normal(size=(4, 4))), jnp.asarray(rng.normal(size=(3, 4)))
        found, expected = (
            jax.vmap(jax.value_and_grad(lambda w, x, s=s: total(w, x, s), argnums=(0, 1), has_aux=True), (None, 0))(
                weight, x
            )
            for s in (ours, plain)
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), found, expected)
    assert found[0][1][1].tolist() == [list(range(length))] * 3


def test_no_step_beyond_the_length_is_taken():
    """5 of 2 x 3 segments: the sixth would divide by zero."""

    def step(carry, index):
        carry = carry / (5.0 - index)
        return carry, carry

    value, slope = jax.value_and_grad(lambda x: checkpointed_scan(step, x, length=5, base=3)[0])(6.0)
    np.testing.assert_allclose((value, slope), (6 / 120, 1 / 120), rtol=1e-6)


def test_memory_hardly_grows_with_the_length():
    """In the compiler's own count of temporaries. Plain reverse mode needs four times as much for four times the steps."""

    def needed(scan, length):
        def total(x):
            return scan(lambda c, i: (jnp.tanh(c @ c.T * 0.1 + 0.01 * i), None), x, length)[0].sum()

        compiled: Any = jax.jit(jax.grad(total)).lower(jnp.ones((64, 64))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    plain = lambda step, x, length: jax.lax.scan(step, x, jnp.arange(length, dtype=jnp.int32))
    ours = lambda step, x, length: checkpointed_scan(step, x, length=length)
    assert needed(ours, 1024) <= 1.5 * needed(ours, 256)
    assert needed(plain, 1024) >= 3.5 * needed(plain, 256)
    assert needed(ours, 1024) < 0.1 * needed(plain, 1024)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"length": 0}, "length must be a whole number of steps, at least 1, and is 0"),
        ({"length": 2.0}, "length must be a whole number of steps, at least 1, and is 2.0"),
        ({"base": 1}, "base must be a whole number, at least 2, and is 1"),
    ],
)
def test_what_is_no_length_and_no_base_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        checkpointed_scan(lambda c, _: (c, None), 0.0, **({"length": 3} | changes))


class Tiny(GridWorld):
    """Three rows, three columns, and a thing two steps away that ends the episode."""

    @property
    def default_params(self):
        return make_level(3, 3, objects=[[1.0, 1.0, 0.0]], cells=[4], start=0, max_steps=6)


AGENT = AgentConfig(num_envs=8, num_steps=4, num_epochs=2, num_minibatches=2, learning_rate=0.1)
UPDATES = 7


def scheduled():
    return lo.ScheduledMirror.create(lo.SoftClip.create(time_aware=True), time_aware=True)


@cache
def life(**config):
    return WholeLife(WholeLifeConfig(**({"base": 2} | config)), Agent(Tiny(3, 3, 1), AGENT), UPDATES)


def newborn(whole, key=0):
    """(task, agent), its tables full of numbers, so that its policy is not uniform."""
    task = whole.agent.task(whole.agent.env.default_params, UPDATES * AGENT.steps_per_update)
    state = whole.agent.init(task, jax.random.key(key))
    rng = np.random.default_rng(key)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), state.params)
    return task, state.replace(params=params)


def plain_loss(whole, objective, task, state, stops):
    """The same by plain scans: nothing is computed twice, and everything is stored."""
    agent, losses, done = whole.agent, [], 0
    for stop in stops:
        state = jax.lax.scan(lambda s, _: (agent.step(objective, task, s)[0], None), state, None, stop - done)[0]
        keys, done = jax.random.split(jax.random.fold_in(jax.random.fold_in(state.key, LOOK), stop), 3), stop
        _, outer = jax.lax.stop_gradient(agent.rollout(objective, task, state, list(keys)))
        advantage = normalise(generalised_advantage(outer, gamma=0.99, gae_lambda=0.95))
        policy = agent.networks.actor(state.params, ro.normalised_obs(state.env, outer.obs))
        losses.append(-(policy.log_prob(outer.action) * advantage).mean())
    return sum(losses) / len(losses)


@pytest.mark.slow
@pytest.mark.parametrize(("points", "stops"), [(1, (7,)), (3, (2, 4, 7))])
def test_the_gradient_is_that_of_plain_reverse_mode(points, stops):
    whole = life(points=points)
    with jax.enable_x64(True):
        objective = wide(scheduled())
        task, state = wide(newborn(whole))
        ours = jax.jit(jax.value_and_grad(lambda o: whole.loss(o, task, state)[0]), compiler_options=QUICK)
        plain = jax.jit(jax.value_and_grad(lambda o: plain_loss(whole, o, task, state, stops)), compiler_options=QUICK)
        (loss, found), (expected_loss, expected) = ours(objective), plain(objective)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-10)
    found, expected = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in (found, expected))
    assert found.dtype == np.float64
    assert np.linalg.norm(found - expected) < 1e-8 * np.linalg.norm(expected)
    assert np.linalg.norm(expected) > 1e-4


@pytest.mark.slow
def test_updates_after_the_end_of_a_life_change_nothing():
    """A life of 5 updates, run for 7: the gradient is that of the 5, and the agent has made no more."""
    long, short = life(), dataclasses.replace(life(), updates=5)
    with jax.enable_x64(True):
        objective = wide(scheduled())
        task, state = wide(newborn(long))
        task = task.replace(lifetime=task.lifetime * 5 / 7)
        found, expected = (
            jax.jit(jax.grad(lambda o, w=w: w.loss(o, task, state)[0]), compiler_options=QUICK)(objective)
            for w in (long, short)
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, expected)


def test_the_gradient_of_a_life_is_shortened_and_never_lengthened():
    gradient = {"a": jnp.float32([3.0, 0.0]), "b": jnp.float32(4.0)}
    found = LifeGradient(gradient, jnp.float32(5.0), jnp.bool_(True), *3 * [jnp.float32(0)])
    assert clipped(found, None) is gradient
    np.testing.assert_allclose(clipped(found, 1.0)["b"], 0.8)
    np.testing.assert_allclose(clipped(found, 50.0)["b"], 4.0)
    broken = found._replace(gradient=jax.tree.map(jnp.zeros_like, gradient), norm=jnp.float32(jnp.inf))
    assert not any(x.any() for x in jax.tree.leaves(clipped(broken._replace(finite=jnp.bool_(False)), 1.0)))


RECIPE = Recipe(
    objective=FormulaConfig("dpo"),
    envs=("CartPole-v1", "Acrobot-v1"),
    total_steps=4 * 64,
    generations=4,
    evaluate_every=2,
    exported="last",
    evaluation_seeds=2,
    checkpoint_every=1,
    agent=AgentConfig(num_envs=4, num_steps=16, num_epochs=4, learning_rate=0.05, hidden=(8,), normalise_reward=True),
    search=WholeLifeConfig(lives=2, learning_rate=0.01, base=2, max_life_grad_norm=1e-3),
)


@pytest.fixture(scope="module")
def search():
    return RECIPE.search.build(Problem(RECIPE))


@pytest.mark.slow
def test_a_step_follows_the_mean_of_clipped_gradients(search):
    """Adam's first step, by hand, along the mean over lives and environments, each life cut to its norm first."""
    state = search.init()
    gradients = []
    for e, (whole, setting) in enumerate(zip(search.lives, search.problem.settings, strict=True)):
        for key in search._keys(e, 0).reshape(-1):
            task = setting.tasks(jax.random.fold_in(key, TASK))
            found = jax.jit(whole.gradient, compiler_options=QUICK)(state.objective, task, key).gradient
            gradients.append(np.array([np.asarray(x, np.float64) for x in jax.tree.leaves(found)]))
    cut = [g * min(1.0, 1e-3 / np.linalg.norm(g)) for g in gradients]
    mean = np.mean(cut, axis=0)
    after, row = search.step(state, 0)
    moved = [
        np.asarray(new, np.float64) - np.asarray(old)
        for new, old in zip(jax.tree.leaves(after.objective), jax.tree.leaves(state.objective), strict=True)
    ]
    np.testing.assert_allclose(moved, -0.01 * mean / (np.abs(mean) + 1e-8), rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(row["meta"]["gradient_norm"], np.linalg.norm(mean), rtol=1e-2)
    largest = max(np.linalg.norm(g) for g in gradients)
    np.testing.assert_allclose(row["meta"]["largest_life_gradient_norm"], largest, rtol=1e-2)
    assert largest > 1e-3
    assert search.problem.updates == search.updates_per_step == 2 * 2 * (4 + 1)
    assert {"reward/CartPole-v1", "reward/Acrobot-v1"} < row["meta"].keys()


@pytest.mark.slow
def test_lives_without_a_finite_gradient_are_left_out(search):
    state = search.init()
    sums = jax.tree.map(lambda x: jnp.stack([2.0 * jnp.ones_like(x), jnp.zeros_like(x)]), state.objective)
    after, norm = search._apply(sums, jnp.array([[True, True], [False, False]]), state)
    np.testing.assert_allclose(norm, math.sqrt(2.0))  # the mean over two lives is (1, 1)
    assert after.objective.drift.alpha < state.objective.drift.alpha
    after, _ = search._apply(sums, jnp.zeros((2, 2), bool), state)
    jax.tree.map(np.testing.assert_array_equal, after, state)


@pytest.mark.slow
def test_killed_and_resumed_on_other_devices_it_exports_the_same_bytes(tmp_path):
    whole = crash.first(of="whole_life_small")  # in this process, on four devices
    moments = (crash.Moment(3, False, 0.02), crash.Moment(9, True, 0.01))
    assert all([crash.kill(tmp_path / "run", moment, devices=2, of="whole_life_small") for moment in moments])
    crash.finish(tmp_path / "run", devices=1, of="whole_life_small")
    assert crash.exported(tmp_path / "run") == crash.exported(whole.result.out)
    assert crash.logged(tmp_path / "run") == crash.logged(whole.result.out)
    assert len({row["mean_norm"] for row in whole.result.rows}) == 17
    assert len({whole.compilations[generation] for generation in range(5, 17)}) == 1


def test_the_recipe_searches_a_drift_and_the_weights_around_it():
    template = recipes.whole_life_small().template()
    assert isinstance(template, lo.ScheduledMirror)
    assert recipes.whole_life_small().search == discover.WholeLifeConfig(lives=8, points=4)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lives": 0}, "search.lives must be at least 1, and is 0"),
        ({"points": 0}, "search.points must be at least 1, and is 0"),
        ({"base": 1}, "search.base must be at least 2, and is 1"),
        ({"learning_rate": 0.0}, "search.learning_rate must be positive and finite, and is 0.0"),
        ({"gamma": 1.5}, r"search.gamma must be in \[0, 1\], and is 1.5"),
        ({"max_life_grad_norm": 0.0}, "search.max_life_grad_norm must be positive, or None, and is 0.0"),
        ({"max_grad_norm": -1.0}, "search.max_grad_norm must be positive, or None, and is -1.0"),
        ({"lives": 6, "chunk": 4}, "search.lives must be a multiple of its chunk, 4, and is 6"),
        ({"chunk": 0}, "search.chunk must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        WholeLifeConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"search": WholeLifeConfig(points=5)}, "search.points must be at most the 4 updates of a life, and is 5"),
        ({"curriculum": CurriculumConfig(kind="plr")}, "with whole lives choose 'uniform' or 'fixed'"),
        ({"objective": LPGConfig(hidden=4, predictions=4)}, "this objective has none: choose 'metagrad'"),
    ],
)
def test_problems_that_it_cannot_solve_are_refused_before_any_training(changes, sentence):
    recipe = dataclasses.replace(RECIPE, **changes)
    with pytest.raises(ValueError, match=sentence):
        recipe.search.build(Problem(recipe))


def test_every_number_of_a_tuned_ppo_has_a_gradient():
    """The two widths of its clip and its four weights, in a life of two updates of several epochs."""
    whole = dataclasses.replace(life(), updates=2)
    objective = lo.ScheduledMirror.create(lo.AsymmetricClip(jnp.float32(0.7), jnp.float32(-0.4)))
    objective = objective.replace(value_clip=0.2)
    task, state = newborn(whole)
    found = jax.jit(jax.grad(lambda o: whole.loss(o, task, state)[0]), compiler_options=QUICK)(objective)
    assert np.abs(found.numbers).min() >= 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    assert found.numbers.any()
    assert TunedPPOConfig  # the family of this objective
