"""Tasks are drawn, replayed and scored as the papers say, and the buffer forgets nothing that it should keep."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import discover
import envs
import learned_objectives as lo
from discover.agents.agent import Agent, AgentState, stretches
from discover.agents.setups import GRID
from discover.devices import parallel
from discover.searches import curriculum as cu
from discover.searches.curriculum import CurriculumConfig
from discover.searches.metagrad import MetaGradConfig
from discover.searches.problem import Setting, life_fitness
from discover.searches.registry import search_for

ENV, _ = envs.make("gridworld/small")
AGENT = Agent(ENV, GRID.agent)
TASKS = cu.Tasks(AGENT, None, 40.0)
LANES = 4  # of every record and every drawn task: compiling is most of this file's time, and one program serves all
jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)  # which compiles in half the time
replay_probability = jit(cu.replay_probability, static_argnums=0)
PLR = CurriculumConfig(kind="plr", size=4, staleness=0.0)
ALWAYS = dataclasses.replace(PLR, replay=1.0)
_record = jit(cu.record, static_argnums=0)
_draw = jit(cu.draw, static_argnums=(0, 1))


def life(score, reference=0.0):
    """Lives [n] whose regret is `score`."""
    score = np.asarray(score, np.float32)
    zeros = np.zeros_like(score)
    reference = zeros + np.float32(reference)
    return cu.LifeSummary(reference - score, reference, zeros, zeros, zeros, zeros)


@jit
def _drawn(key):
    return jax.vmap(lambda key: cu.fresh(TASKS, key))(jax.random.split(key, LANES))


def drawn(seed, count):
    return jax.tree.map(lambda x: x[:count], jax.device_get(_drawn(jax.random.key(seed))))


def record(buffer, tasks, lives):
    """What the buffer is once these lives have ended; in lanes that are not needed others go on."""
    count = len(lives.reference)
    tasks, lives = jax.tree.map(lambda x: np.asarray(x)[np.arange(LANES) % count], (tasks, lives))
    return jax.device_get(_record(PLR, buffer, tasks, lives, np.arange(LANES) < count))


def draw(config, buffer, seed, count, wanted=True):
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.device_get(_draw(config, TASKS, buffer, keys, np.full(count, wanted)))


def filled(scores):
    return record(cu.empty(PLR, TASKS), drawn(0, len(scores)), life(scores))


@pytest.mark.slow
def test_a_task_is_a_level_of_the_distribution_with_its_lifetime():
    task = TASKS(jax.random.key(3))
    assert task.lifetime == 250 * 64 * 20
    assert task.learning_rate == 40.0
    assert 4 <= (~np.asarray(task.env_params.wall)).sum() <= 36


@pytest.mark.slow
def test_lifetimes_that_vary_are_whole_rollouts_between_their_bounds():
    tasks = cu.Tasks(Agent(envs.make("gridworld/all_vrandlife")[0], GRID.agent), None, 40.0)
    lifetimes = np.asarray(jit(jax.vmap(tasks))(jax.random.split(jax.random.key(0), 2000)).lifetime)
    updates = lifetimes / 1280
    assert (updates == updates.round()).all()
    assert updates.min() == 10
    assert 245 < updates.max() <= 250
    # Log-uniform: as many below the geometric mean as above.
    assert 0.45 < (updates < 50).mean() < 0.55


def test_lives_in_any_environment_may_vary_in_length():
    agent = Agent(envs.make("probe/observation_action")[0], discover.AgentConfig(num_envs=4, num_steps=16))
    tasks = cu.Tasks(agent, 2 * 64 + 5, 1e-3, longest_steps=200 * 64)
    updates = np.asarray(jit(jax.vmap(tasks))(jax.random.split(jax.random.key(0), 2000)).lifetime) / 64
    assert (updates == updates.round()).all()
    assert updates.min() == 2
    assert 190 < updates.max() <= 200
    assert 0.45 < (updates < 20).mean() < 0.55  # log-uniform: 20 is the geometric mean of 2 and 200


def test_a_life_of_a_length_that_varies_is_judged_as_one_of_that_length():
    agent = Agent(envs.make("probe/observation_action")[0], discover.AgentConfig(num_envs=4, num_steps=16, hidden=(8,)))
    tasks, key = cu.Tasks(agent, 10 * 64, 1e-2, longest_steps=40 * 64), jax.random.key(3)
    task = jit(tasks)(key)
    fixed = cu.Tasks(agent, int(task.lifetime), 1e-2)
    ppo = lo.load("ppo")
    found, expected = (
        jit(life_fitness, static_argnums=0)(Setting(agent, tasks, None), ppo, task, key) for tasks in (tasks, fixed)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_long_life_of_an_odd_rollout_keeps_its_last_update():
    config = discover.AgentConfig(num_envs=7, num_steps=13, num_minibatches=1)
    agent = Agent(envs.make("probe/observation_action")[0], config)
    for updates in (999_983, 2**22 - 1):  # times 91 steps: beyond the whole numbers of float32
        task = cu.Tasks(agent, updates * 91, 1e-3)(jax.random.key(0))
        assert cu.num_updates(config, task) == updates
        assert task.lifetime == np.float32(updates * 91)


def test_learning_rates_may_vary_between_lives():
    agent = Agent(envs.make("probe/observation_action")[0], discover.AgentConfig(num_envs=4, num_steps=16))
    tasks = cu.Tasks(agent, 1024, 1e-3, rate_spread=4.0, constant_rates=0.25)
    drawn = jit(jax.vmap(tasks))(jax.random.split(jax.random.key(0), 2000))
    rates = np.asarray(drawn.learning_rate)
    assert 0.25e-3 <= rates.min() < 0.26e-3
    assert 3.9e-3 < rates.max() <= 4e-3
    assert 0.45 < (rates < 1e-3).mean() < 0.55  # log-uniform: 1e-3 is the geometric mean
    assert 0.72 < np.asarray(drawn.anneal).mean() < 0.78
    usual = jit(jax.vmap(cu.Tasks(agent, 1024, 1e-3)))(jax.random.split(jax.random.key(0), 2000))
    np.testing.assert_array_equal(usual.lifetime, drawn.lifetime)
    assert usual.anneal is None


@pytest.mark.parametrize("anneals", [True, False])
def test_the_learning_rate_of_a_task_falls_or_stays(anneals):
    agent = Agent(envs.make("probe/observation_action")[0], discover.AgentConfig(num_envs=4, num_steps=16))
    task = agent.task(agent.env.default_params, 1024).replace(learning_rate=jnp.float32(0.5), anneal=anneals)
    progress = lo.Progress(jnp.float32(256.0), jnp.float32(1024.0))
    assert float(agent.rate(task, progress)) == (0.375 if anneals else 0.5)


def test_bounds_of_lifetimes_that_cannot_be_are_refused():
    agent = Agent(envs.make("CartPole-v1")[0], discover.AgentConfig(num_envs=4, num_steps=16))
    with pytest.raises(ValueError, match=r"^longest_steps must be at least total_steps, 1,024, and is 512"):
        cu.Tasks(agent, 1024, 1e-3, longest_steps=512)
    with pytest.raises(ValueError, match=r"^longest_steps must hold at least one rollout"):
        cu.Tasks(agent, 1024, 1e-3, longest_steps=5)
    with pytest.raises(ValueError, match=r"^longest_steps must hold at least one rollout .*, and is 100\."):
        dataclasses.replace(discover.recipes.quickstart(), longest_steps=100)
    with pytest.raises(ValueError, match=r"^longest_steps needs total_steps"):
        cu.Tasks(AGENT, None, 1e-3, longest_steps=12_800)


def test_a_fixed_set_has_so_many_tasks_and_no_more():
    tasks = dataclasses.replace(TASKS, num_fixed=3)
    starts = jit(jax.vmap(tasks))(jax.random.split(jax.random.key(0), 60)).env_params.reward
    assert len(np.unique(np.asarray(starts), axis=0)) == 3


def test_a_life_too_short_for_a_rollout_is_refused():
    long_rollouts = Agent(ENV, dataclasses.replace(GRID.agent, num_steps=100_000))
    with pytest.raises(
        ValueError, match=r"^the shortest life on gridworld/small is 320000 environment steps, less than"
    ):
        cu.Tasks(long_rollouts, None, 40.0)
    with pytest.raises(ValueError, match="total_steps must hold at least one rollout"):
        cu.Tasks(AGENT, 1279, 40.0)


@pytest.mark.parametrize("rollout", [(1, 1), (3, 1), (4, 128), (64, 20), (7, 13)])
def test_a_clock_in_float32_tells_the_updates_of_the_longest_life_apart(rollout):
    config = dataclasses.replace(GRID.agent, num_envs=rollout[0], num_steps=rollout[1], anneal=False)
    agent, most = Agent(ENV, config), 2**22
    task = agent.task(None, most * config.steps_per_update)
    assert cu.num_updates(config, task) == most
    step = agent.progress(task, AgentState(None, None, None, None, jnp.arange(most - 4, most + 1))).step
    np.testing.assert_array_equal(np.asarray(step < task.lifetime), [True] * 4 + [False])
    with pytest.raises(ValueError, match=r"^total_steps must hold at most 4,194,304 rollouts of"):
        agent.task(None, (most + 1) * config.steps_per_update)


def test_stretches_of_a_long_life_of_a_length_in_an_array():
    length = 2**22 - 3
    expected = [i * length // 700 for i in range(701)]  # whose products exceed int32
    np.testing.assert_array_equal(stretches(jnp.int32(length), 700), expected)


def test_rank_prioritisation_is_one_over_rank():
    # Ranks 3, 1, 2, 4 of scores 1, 5, 2, -1: 1/3, 1, 1/2 and 1/4 over their sum, 25/12.
    probability = replay_probability(PLR, filled([1.0, 5.0, 2.0, -1.0]))
    np.testing.assert_allclose(probability, np.array([4, 12, 6, 3]) / 25, rtol=1e-6)


def test_temperature_is_the_power_of_rank():
    config = dataclasses.replace(PLR, temperature=0.5)
    weight = np.array([1 / 9, 1.0, 1 / 4, 1 / 16])
    np.testing.assert_allclose(
        replay_probability(config, filled([1.0, 5.0, 2.0, -1.0])), weight / weight.sum(), rtol=1e-6
    )


def test_proportional_prioritisation_is_the_score_where_it_is_positive():
    config = dataclasses.replace(PLR, prioritisation="proportional")
    np.testing.assert_allclose(
        replay_probability(config, filled([1.0, 5.0, 2.0, -1.0])), np.array([1, 5, 2, 0]) / 8, rtol=1e-6
    )


def test_staleness_is_its_share():
    config = dataclasses.replace(PLR, staleness=0.25)
    buffer = filled([4.0, 3.0, 2.0, 1.0]).replace(draws=jnp.int32(10), played=jnp.array([10, 4, 8, 8]))
    rank = np.array([12, 6, 4, 3]) / 25
    np.testing.assert_allclose(
        replay_probability(config, buffer), 0.75 * rank + 0.25 * np.array([0, 6, 2, 2]) / 10, rtol=1e-6
    )


def test_empty_slots_are_never_replayed():
    probability = np.asarray(replay_probability(PLR, filled([2.0, 1.0])))
    assert (probability[2:] == 0).all()
    assert probability.sum() == pytest.approx(1.0)
    buffer, again = draw(ALWAYS, filled([2.0, 1.0]), 0, 64)
    assert set(np.asarray(again.slot)) == {0, 1}
    np.testing.assert_array_equal(again.task.env_params.reward, buffer.task.env_params.reward[again.slot])


def test_an_empty_buffer_gives_new_tasks():
    _, new = draw(ALWAYS, cu.empty(ALWAYS, TASKS), 0, 64)
    assert (np.asarray(new.slot) == -1).all()
    assert np.isnan(np.asarray(new.reference)).all()


@pytest.mark.slow
def test_about_half_of_the_draws_are_replays():
    _, some = draw(PLR, filled([2.0, 1.0]), 1, 4000)
    assert 0.47 < (np.asarray(some.slot) >= 0).mean() < 0.53


def test_draws_that_nobody_wanted_leave_no_trace():
    before = filled([2.0, 1.0])
    after, _ = draw(PLR, before, 1, 4000, wanted=False)
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_a_better_task_takes_the_place_of_the_least_likely_one():
    buffer = filled([4.0, 1.0, 3.0, 2.0])
    after = record(buffer, drawn(1, 2), life([1.5, 0.5]))
    np.testing.assert_array_equal(after.score, [4.0, 1.5, 3.0, 2.0])
    np.testing.assert_array_equal(after.task.env_params.reward[1], drawn(1, 2).task.env_params.reward[0])
    assert after.entered == 5


def again(buffer, slot, reference=0.0):
    """The task in that slot, drawn again: leaves [1, ...]."""
    task, number = jax.tree.map(lambda x: x[slot, None], (buffer.task, buffer.number))
    return cu.AssignedTask(task, np.int32([slot]), number, np.float32([reference]), np.float32([0.0]))


def test_a_known_task_gets_its_new_score_and_keeps_its_place():
    buffer = filled([4.0, 1.0, 3.0, 2.0])
    after = record(buffer, again(buffer, 2, reference=7.0), life([0.25], 7.0))
    np.testing.assert_array_equal(after.score, [4.0, 1.0, 0.25, 2.0])
    assert after.reference[2] == 7.0
    assert after.entered == 4


def test_the_highest_return_known_of_a_task_never_falls():
    buffer = filled([4.0, 1.0])
    for highest in (5.0, 2.0):
        buffer = record(buffer, again(buffer, 1), life([0.5]).replace(max_return=np.float32([highest])))
    assert buffer.max_return[1] == 5.0


def test_a_task_whose_slot_was_given_away_meanwhile_does_not_overwrite_the_new_one():
    buffer = filled([4.0, 1.0, 3.0, 2.0])
    gone = drawn(5, 1).replace(slot=np.int32([0]), number=np.int32([99]))
    after = record(buffer, gone, life([0.5]))
    jax.tree.map(np.testing.assert_array_equal, after, buffer)


@pytest.mark.parametrize("score", [np.nan, np.inf])
def test_a_score_that_is_not_finite_never_enters(score):
    buffer = filled([4.0, 1.0])
    jax.tree.map(np.testing.assert_array_equal, record(buffer, drawn(1, 1), life([score])), buffer)


def test_scores_are_what_their_papers_say():
    one = cu.LifeSummary(*(jnp.float32(x) for x in (2.0, 5.0, 0.3, 0.7, 1.5, 4.0)))
    expected = {"regret": 3.0, "optimal_regret": 3.0, "positive_value_loss": 0.3, "l1_value_loss": 0.7, "max_mc": 2.5}
    assert {name: float(score(one)) for name, score in cu.SCORES.items()} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"kind": "random"}, "curriculum.kind must be uniform, fixed or plr, and is 'random'."),
        ({"score": "regre"}, "did you mean 'regret'"),
        ({"size": 0}, "curriculum.size must be at least 1, and is 0."),
        ({"replay": 1.5}, r"curriculum.replay must be in \[0, 1\], and is 1.5."),
        ({"temperature": 0.0}, "curriculum.temperature must be positive, and is 0.0."),
    ],
)
def test_what_cannot_be_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        CurriculumConfig(**changes)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_dear_items_share_chunks_and_every_device_has_its_part(devices):
    cost = np.random.default_rng(0).integers(10, 250, 24)
    order = parallel.balance(cost, 2, devices)
    assert set(order) == set(range(24))
    chunks = np.sort(cost[order].reshape(-1, 2), axis=1)
    assert sorted(map(tuple, chunks)) == sorted(map(tuple, np.sort(np.sort(cost)[::-1].reshape(-1, 2), axis=1)))
    share = cost[order].reshape(devices, -1, 2).max(-1).sum(-1)
    assert share.max() - share.min() <= cost.max() - cost.min()


def test_padding_of_dealt_items_repeats_one():
    order = parallel.balance(np.array([3, 1, 2]), 2, 2)
    assert len(order) == 4
    assert set(order) == {0, 1, 2}


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("chunk", [1, 3])
def test_only_what_is_wanted_is_done(devices, chunk):
    items = jnp.arange(8.0).reshape(4, 2)
    wanted = jnp.array([[1, 0], [0, 0], [1, 1], [0, 1]], bool)
    program = parallel.sharded_map_where(lambda shared, x: shared * x, chunk=chunk, devices=jax.devices()[:devices])
    outs = program(jnp.float32(10), items, wanted, jnp.full((4, 2), -1.0))
    np.testing.assert_array_equal(outs, [[0, -1], [-1, -1], [40, 50], [-1, 70]])


@pytest.mark.slow
def test_an_antagonist_that_diverged_is_no_reference():
    agent = dataclasses.replace(GRID.agent, num_envs=2, num_steps=4)
    recipe = dataclasses.replace(
        discover.recipes.groove_small(),
        total_steps=16,
        fitness_episodes=2,
        agent=agent,
        search=MetaGradConfig(members=2, chunk=2),
        curriculum=dataclasses.replace(PLR, score="regret"),
    )
    search = search_for(recipe).search
    keys = jax.random.split(jax.random.key(0), (1, 2))
    task = jax.vmap(jax.vmap(search.worlds[0].setting.tasks))(keys)
    task = task.replace(learning_rate=jnp.float32([[40.0, np.inf]]))
    found = search._references(search._antagonist, (task, keys), np.ones((1, 2), bool), np.zeros((1, 2), np.float32))
    np.testing.assert_array_equal(np.isfinite(np.asarray(found)), [[True, False]])
