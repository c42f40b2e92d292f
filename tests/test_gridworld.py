"""Grid worlds step, and are solved, as a second telling of them in plain Python does; levels are those of the papers."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import Counter
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

import envs
from envs import levels
from envs.gridworld import (
    GridState,
    GridWorld,
    is_solvable,
    make_level,
    optimal_return,
    policy_evaluation,
    value_iteration,
)

MOVES = {
    "cross": [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)],
    "square": [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0), (0, 1), (1, -1), (1, 0), (1, 1)],
}


class World:
    """A level as plain lists, and its rules once more."""

    def __init__(self, env, level):
        fields = {name: np.asarray(value) for name, value in vars(level).items()}
        self.height, self.width, self.actions = env.height, env.width, env.actions
        self.wall, self.used = fields["wall"].tolist(), fields["used"].tolist()
        self.free = [cell for cell, wall in enumerate(self.wall) if not wall]
        self.reward, self.p_terminate, self.p_respawn = (fields[k] for k in ("reward", "p_terminate", "p_respawn"))
        self.start, self.cells = int(fields["start"]), fields["cell"].tolist()
        self.shuffled, self.limit = bool(fields["shuffled"]), int(fields["max_steps_in_episode"])

    def effect(self, position, action):
        """(the cell entered, the cell collected from or None)."""
        moves = MOVES["cross" if self.actions == "cross" else "square"]
        row, column = (a + b for a, b in zip(divmod(position, self.width), moves[action % len(moves)], strict=True))
        there = row * self.width + column if 0 <= row < self.height and 0 <= column < self.width else None
        if action >= len(moves):
            return position, there
        entered = position if there is None or self.wall[there] else there
        return entered, None if self.actions == "collect" else entered

    def num_actions(self):
        return {"cross": 5, "square": 9, "collect": 18}[self.actions]

    def free_cell(self, uniform):
        return self.free[int(uniform * np.float32(len(self.free)))]

    def begin(self, uniform):
        """(position, object cells, presence), from numbers for the objects and, last, the agent."""
        if not self.shuffled:
            return self.start, list(self.cells), list(self.used)
        *cells, position = (self.free_cell(u) for u in uniform)
        return position, cells, list(self.used)

    def step(self, position, cells, present, action, end, back, where):
        position, source = self.effect(position, action)
        cells, after = list(cells), list(present)
        reward = p_end = np.float32(0)
        for i, there in enumerate(present):
            if there and cells[i] == source:
                reward, p_end, after[i] = reward + self.reward[i], p_end + self.p_terminate[i], False
            elif not there and self.used[i] and back[i] < self.p_respawn[i]:
                after[i] = True
                cells[i] = self.free_cell(where[i]) if self.shuffled else cells[i]
        return (position, cells, after), reward, bool(end < p_end)

    def reachable(self, start):
        """(the cells that can be entered, those that can be collected from)."""
        entered, sources, queue = {start}, set(), [start]
        while queue:
            position = queue.pop(0)
            for action in range(self.num_actions()):
                target, source = self.effect(position, action)
                sources.add(source)
                if target not in entered:
                    entered.add(target)
                    queue.append(target)
        return entered, sources

    def solvable(self):
        good = [i for i, used in enumerate(self.used) if used and self.reward[i] > 0]
        if not self.shuffled:
            return any(self.cells[i] in self.reachable(self.start)[1] for i in good)
        return bool(good) and all(set(self.free) <= self.reachable(start)[1] for start in self.free)

    def expectimax(self, gamma):
        """value(steps, position, presence), by trying every action and every outcome."""

        @cache
        def value(steps, position, present):
            return max(outcomes(steps, position, present, a) for a in range(self.num_actions())) if steps else 0.0

        def outcomes(steps, position, present, action):
            target, source = self.effect(position, action)
            taken = [i for i in range(len(present)) if present[i] and self.cells[i] == source]
            absent = [i for i in range(len(present)) if self.used[i] and not present[i]]
            going_on = 1 - min(1.0, sum(float(self.p_terminate[i]) for i in taken))
            total = sum(float(self.reward[i]) for i in taken)
            for back in itertools.product((False, True), repeat=len(absent)):
                p = np.prod(
                    [self.p_respawn[i] if b else 1 - self.p_respawn[i] for i, b in zip(absent, back, strict=True)]
                )
                then = [there and i not in taken for i, there in enumerate(present)]
                for i, b in zip(absent, back, strict=True):
                    then[i] = b
                total += gamma * going_on * float(p) * value(steps - 1, target, tuple(then))
            return total

        return value


def _pick(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def _stack(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


# Compiling is nearly all the cost of these tests, and this halves it.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@cache
def _samples(name):
    """Four thousand levels, drawn once for all tests."""
    draw = jit(jax.vmap(partial(levels.sample, name=name)))
    return jax.device_get(draw(jax.random.split(jax.random.key(0), 4000)))


def _sample(name, count):
    return jax.tree.map(lambda leaf: leaf[:count], _samples(name))


@partial(jit, static_argnums=0)
@partial(jax.vmap, in_axes=(None, 0, 0, 0))
def _play(env, level, key, actions):
    """Every state of a rollout, before and after resets, and the uniform numbers behind it."""
    draw = lambda key, count: jax.random.uniform(key, (count,))
    first_key, key = jax.random.split(key)
    first = env.reset(first_key, level)[1]

    def body(state, x):
        key, action = x
        step_key, reset_key = jax.random.split(key)
        reached = env.step_env(step_key, state, action, level)[1]
        _, state, reward, terminated, truncated, _ = env.step(key, state, action, level)
        uniform = draw(step_key, 2 * env.num_objects + 1), draw(reset_key, env.num_objects + 1)
        return state, (reached, state, reward, terminated, truncated, *uniform)

    out = jax.lax.scan(body, first, (jax.random.split(key, len(actions)), actions))[1]
    return first, draw(first_key, env.num_objects + 1), out


def _plain(state):
    return int(state.position), state.cell.tolist(), state.present.tolist()


FAMILIES = [
    ("all", "cross"),
    ("all", "collect"),
    ("tabular", "cross"),
    ("mazes", "cross"),
    ("rand_small", "cross"),
    ("rand_sparse", "square"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "actions"), FAMILIES)
def test_steps_are_those_of_a_second_telling(name, actions):
    worlds, steps = 34, 50
    env, _ = envs.make(f"gridworld/{name}", actions=actions)
    level = _sample(name, worlds)
    chosen = np.random.default_rng(0).integers(env.num_actions, size=(worlds, steps))
    played = jax.tree.map(np.asarray, _play(env, level, jax.random.split(jax.random.key(1), worlds), chosen))
    seen = Counter()
    for i in range(worlds):
        world = World(env, _pick(level, i))
        first, uniform, out = _pick(played, i)
        state, time = world.begin(uniform), 0
        assert _plain(first) == state
        for t in range(steps):
            reached, after, reward, terminated, truncated, draws, reset_draws = _pick(out, t)
            end, back, where = draws[0], draws[1 : env.num_objects + 1], draws[env.num_objects + 1 :]
            before = state
            state, expected, ends = world.step(*before, chosen[i, t], end, back, where)
            time += 1
            assert _plain(reached) == state
            assert reached.time == time
            assert reward == expected
            assert (terminated, truncated) == (ends, time >= world.limit)
            seen.update(collected=int(reward != 0), back=sum(state[2]) > sum(before[2]), moved=state[1] != before[1])
            if ends or time >= world.limit:
                seen.update(ended=ends, limited=not ends)
                state, time = world.begin(reset_draws), 0
            assert _plain(after) == state
            assert after.time == time
    assert seen["collected"] > 0
    assert seen["ended"] > 0
    assert (seen["back"] > 0) == (name != "rand_sparse")  # there the episode ends with the first object
    assert (seen["moved"] > 0) == (name == "rand_small")


def test_an_object_does_not_come_back_in_the_step_that_takes_it():
    env = GridWorld(1, 1, 1)
    level = make_level(1, 1, objects=[[1, 0, 1]], cells=[0], start=0, max_steps=9)
    _, state = env.reset(jax.random.key(0), level)
    step, rewards = jit(env.step), []
    for _ in range(5):
        _, state, reward, *_ = step(jax.random.key(0), state, 0, level)
        rewards.append(float(reward))
    assert rewards == [1, 0, 1, 0, 1]
    assert value_iteration(env, level, steps=5).tolist() == [2, 3]  # absent, present


def test_what_a_random_walk_is_worth_by_hand():
    env = GridWorld(1, 2, 1)
    level = make_level(1, 2, objects=[[1, 1, 0]], cells=[1], start=0, max_steps=400)
    worth = policy_evaluation(env, level, jnp.full((4, 5), 0.2), gamma=0.9)
    value = 0.2 / (1 - 0.8 * 0.9)  # one action in five takes the object, which ends the episode; the others stay
    np.testing.assert_allclose(worth[2], [0.9 * value] * 4 + [1.0], rtol=1e-5)
    assert not worth[:2].any()  # nothing is left to take
    one = policy_evaluation(env, level, jnp.full((4, 5), 0.2), gamma=0.9, steps=1)
    np.testing.assert_array_equal(one[2], [0, 0, 0, 0, 1])
    with pytest.raises(ValueError, match=r"policy must have shape \(4, 5\), and has \(2, 5\)"):
        policy_evaluation(env, level, jnp.full((2, 5), 0.2))


def test_policy_iteration_comes_to_value_iteration():
    env, level = (
        GridWorld(3, 3, 2),
        make_level(3, 3, objects=[[1, 0.1, 0.3], [-0.5, 0, 0.5]], cells=[8, 4], start=0, max_steps=400),
    )
    policy = jnp.full((env.num_states, env.num_actions), 0.2)
    for _ in range(8):
        worth = policy_evaluation(env, level, policy, gamma=0.9)
        policy = jax.nn.one_hot(worth.argmax(-1), env.num_actions)
    np.testing.assert_allclose(worth.max(-1), value_iteration(env, level, gamma=0.9), rtol=1e-4, atol=1e-5)


def test_the_integer_observation_numbers_every_state_once():
    env = GridWorld(2, 3, 3)
    position, *bits = np.meshgrid(range(6), *[[False, True]] * 3, indexing="ij")
    present = jnp.asarray(np.stack([b.ravel() for b in bits], -1))
    state = GridState(jnp.asarray(position.ravel()), present, jnp.zeros((48, 3), jnp.int32), jnp.zeros(48, jnp.int32))
    obs = jax.vmap(env.observe, (0, None))(state, None)
    assert obs.dtype == np.int32
    assert sorted(obs.tolist()) == list(range(48))
    space = env.observation_space(None)
    assert space.n == env.num_states == 48
    assert space.contains(obs).all()
    at = GridState(jnp.int32(4), jnp.array([True, False, True]), jnp.zeros(3, jnp.int32), jnp.int32(0))
    assert env.observe(at, None) == 4 + 6 * (1 + 4)


def test_planes_show_the_agent_the_walls_and_each_object():
    env = GridWorld(3, 4, 3, observation="planes")
    level = make_level(2, 3, objects=[[1, 0, 0]] * 2, cells=[2, 3], start=0, walls=[4], max_steps=9, padded=(3, 4, 3))
    obs, state = env.reset(jax.random.key(0), level)
    drawn = ["A.0#", "1#.#", "####"]
    expected = np.array([[[c == "A", c == "#", c == "0", c == "1", False] for c in row] for row in drawn])
    np.testing.assert_array_equal(obs, expected.astype(np.float32))
    assert env.observation_space(level).contains(obs)
    assert env.observation_space(level).shape == obs.shape
    obs, *_ = jit(env.step)(jax.random.key(0), state, 2, level)  # down, onto the second object
    assert np.argwhere(obs[..., 0]).tolist() == [[1, 0]]
    assert obs[..., 2].sum() == 1
    assert not obs[..., 3:].any()


def _random_level(rng, height, width):
    walls = rng.sample(range(height * width), rng.randint(0, height * width // 2))
    free = sorted(set(range(height * width)) - set(walls))
    objects = [[rng.uniform(-1, 1), rng.random(), rng.random()] for _ in range(2)]
    level = make_level(
        height,
        width,
        objects=objects,
        cells=rng.choices(free, k=2),
        start=rng.choice(free),
        walls=walls,
        max_steps=rng.randint(1, 5),
        padded=(height, width, 3),
    )
    return level.replace(shuffled=jnp.asarray(rng.random() < 0.3))


@pytest.mark.parametrize("actions", [*MOVES, "collect"])
def test_solvable_is_what_a_search_finds(actions):
    rng = random.Random(0)
    env = GridWorld(3, 4, 3, actions=actions)
    some = [_random_level(rng, 3, 4) for _ in range(40)]
    expected = [World(env, level).solvable() for level in some]
    assert jit(jax.vmap(partial(is_solvable, env)))(_stack(some)).tolist() == expected
    answers = {(bool(level.shuffled), answer) for level, answer in zip(some, expected, strict=True)}
    assert answers == {(False, False), (False, True), (True, False), (True, True)}


_tiny = partial(make_level, start=0, padded=(2, 3, 2))
TINY = [
    _tiny(2, 2, objects=[[1, 0.5, 0.3]], cells=[3], max_steps=5),
    _tiny(2, 3, objects=[[1, 0.2, 0.4], [-0.5, 0.6, 0.7]], cells=[5, 2], walls=[1], max_steps=6),
    _tiny(2, 3, objects=[[1, 0.7, 0.2], [0.5, 0.6, 0.9]], cells=[4, 4], max_steps=4),  # p_terminate adds up to 1.3
    _tiny(2, 3, objects=[[0.3, 0.9, 0.5], [1, 0.05, 0.6]], cells=[1, 2], walls=[3, 4], max_steps=6),
    _tiny(2, 2, objects=[[-1, 0.1, 0.8], [-0.2, 0.3, 0.5]], cells=[0, 1], max_steps=3),
]


@pytest.mark.parametrize("actions", ["cross", "collect"])
def test_optimal_values_are_those_of_trying_everything(actions):
    env = GridWorld(2, 3, 2, actions=actions)
    batch = _stack(TINY)
    values = jit(jax.vmap(partial(value_iteration, env, gamma=0.9)))(batch)
    planes = dataclasses.replace(env, observation="planes")
    returns = jit(jax.vmap(partial(optimal_return, planes)))(batch)
    for level, value, optimum in zip(TINY, values, returns, strict=True):
        world = World(env, level)
        assert optimum == pytest.approx(world.expectimax(1.0)(world.limit, world.start, tuple(world.used)), abs=1e-5)
        best = world.expectimax(0.9)
        for position, present in itertools.product(world.free, itertools.product(*[(False, u) for u in world.used])):
            number = position + 6 * (present[0] + 2 * present[1])
            assert value[number] == pytest.approx(best(world.limit, position, present), abs=1e-5)


@pytest.mark.parametrize("actions", ["cross", "collect"])
def test_a_value_by_hand(actions):
    # Two steps to the object; then 3/4 survive, and it is back in time for the fifth step with probability 1/2 + 1/4.
    env = GridWorld(1, 3, 1, actions=actions)
    level = make_level(1, 3, objects=[[1, 0.25, 0.5]], cells=[2], start=0, max_steps=5)
    assert optimal_return(env, level) == pytest.approx(1 + 0.75 * 0.75)
    assert value_iteration(env, level, steps=2, gamma=0.9)[0 + 3] == pytest.approx(0.9)
    assert value_iteration(env, level, steps=1)[0 + 3] == 0


def test_a_shuffled_world_has_no_optimal_return():
    env = GridWorld(1, 3, 1)
    assert np.isnan(optimal_return(env, make_level(1, 3, objects=[[1, 0.25, 0.5]], max_steps=5)))


_GOOD, _BAD = [1, 0, 0.05], [-1, 0.5, 0.1]
PAPER = {  # rows = columns, objects [reward, p_terminate, p_respawn], time limit
    "dense": (11, [_GOOD, _GOOD, _BAD, [-1, 0, 0.5]], 500),
    "sparse": (13, [[1, 1, 0], [-1, 1, 0]], 50),
    "long": (11, [[1, 0, 0.01]] * 2 + [[-1, 0.5, 1]] * 2, 1000),
    "longer": (9, [[1, 0.1, 0.01]] * 2 + [[-1, 0.8, 1]] * 5, 2000),
    "long_dense": (11, [[1, 0, 0.005]] * 4, 2000),
}
SHUFFLED = {
    "rand_dense": (11, [_GOOD, _GOOD, _BAD, [-1, 0, 0.5]], 500),
    "rand_long": (11, [[1, 0, 0.01]] * 2 + [[-1, 0.5, 1]] * 2, 1000),
    "rand_small": (7, [_GOOD, _GOOD, _BAD, _BAD], 500),
    "rand_sparse": (7, [[1, 1, 1], [-1, 1, 1], [-1, 1, 1]], 50),
    "rand_very_dense": (11, [[1, 0, 1]], 2000),
}
CODE = {
    "groove_longer": (9, [[1, 0.1, 0.01]] * 2 + [[-1, 0.8, 1]] * 3, 2000),
    "groove_long_dense": (11, [[1, 0, 0.005]] * 4, 2000),
}
WALLS = {
    "rand_small": {9, 25},
    "groove_longer": {9 * row + 4 for row in range(9)} - {9 * 1 + 4, 9 * 7 + 4},
    "groove_long_dense": {11 * row + 5 for row in range(11) if row not in (0, 7)}
    | {11 * 4 + column for column in range(11) if column not in (2, 8)},
}


def _objects(level):
    """[O, 3] of the objects in use."""
    return np.stack([level.reward, level.p_terminate, level.p_respawn], -1)[np.asarray(level.used)]


def _assert_nothing_in_a_wall(level):
    wall = np.asarray(level.wall)
    assert not np.take_along_axis(wall, np.asarray(level.cell), -1).any()
    assert not np.take_along_axis(wall, np.asarray(level.start)[:, None], -1).any()


@pytest.mark.parametrize("name", [*PAPER, *SHUFFLED, *CODE])
def test_the_levels_of_the_papers(name):
    size, objects, limit = (PAPER | SHUFFLED | CODE)[name]
    env, _ = envs.make(f"gridworld/{name}")
    assert (env.height, env.width, env.num_objects, env.num_actions) == (size, size, len(objects), 5)
    assert env.observation == ("planes" if name in SHUFFLED else "index")
    batch = _sample(name, 16)
    for i in range(16):
        level = _pick(batch, i)
        np.testing.assert_allclose(_objects(level), objects, rtol=1e-6)
        assert level.max_steps_in_episode == limit
        assert level.shuffled == (name in SHUFFLED)
        assert set(np.flatnonzero(level.wall)) == WALLS.get(name, set())
    _assert_nothing_in_a_wall(batch)
    assert len(set(batch.start.tolist())) > 1
    assert len({tuple(cells) for cells in batch.cell.tolist()}) > 1


def test_tabular_is_one_of_the_five_levels_padded():
    env, _ = envs.make("gridworld/tabular")
    batch = _sample("tabular", 64)
    seen = Counter()
    for i in range(64):
        level = _pick(batch, i)
        for name, (size, objects, limit) in PAPER.items():
            inside = np.zeros((env.height, env.width), bool)
            inside[:size, :size] = True
            seen[name] += (
                level.max_steps_in_episode == limit
                and np.array_equal(~level.wall, inside.ravel())
                and np.array_equal(_objects(level), np.array(objects, np.float32))
            )
    assert sum(seen.values()) == 64
    assert min(seen[name] for name in PAPER) > 3
    _assert_nothing_in_a_wall(batch)


# name: sizes, numbers of objects, walls of cells, time limits
DISTRIBUTIONS = {
    "all": ((4, 10), (1, 5), 15 / 100, (20, 750)),
    "small": ((4, 6), (1, 3), 7 / 36, (20, 100)),
    "medium": ((6, 8), (2, 4), 10 / 64, (100, 250)),
    "large": ((8, 10), (2, 5), 15 / 100, (250, 750)),
}


def _is_uniform(values, low, high):
    values = np.asarray(values, np.float64).ravel()
    assert values.min() >= low - 1e-6
    assert values.max() <= high + 1e-6
    assert kstest(values, "uniform", (low, high - low)).pvalue > 1e-3


def _is_uniform_over(values, low, high):
    counts = Counter(np.asarray(values).tolist())
    assert set(counts) == set(range(low, high + 1))
    share = 1 / len(counts)
    spread = np.sqrt(len(values) * share * (1 - share))
    assert max(abs(count - len(values) * share) for count in counts.values()) < 4.5 * spread


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_random_worlds_are_distributed_as_in_the_paper(name):
    sizes, objects, density, limits = DISTRIBUTIONS[name]
    count, largest = 4000, sizes[1]
    batch = _sample(name, count)
    _assert_nothing_in_a_wall(batch)
    assert not batch.shuffled.any()

    open_ = ~batch.wall.reshape(count, largest, largest)
    rows, columns = open_.any(2), open_.any(1)
    extent = np.where(rows | columns, np.arange(1, largest + 1), 0).max(1)  # a whole border of walls hardly ever occurs
    _is_uniform_over(extent, *sizes)
    for size in range(sizes[0], sizes[1] + 1):
        share = 1 - open_[extent == size].sum((1, 2)) / size**2
        assert share.mean() == pytest.approx(density, abs=0.01)
    np.testing.assert_allclose(share, density)  # the largest have all of them

    used = batch.used.sum(1)
    _is_uniform_over(used, *objects)
    assert (batch.used == (np.arange(objects[1]) < used[:, None])).all()
    _is_uniform(batch.reward[:, 0], 0, 1)
    _is_uniform(batch.reward[:, 1:], -1, 1)
    _is_uniform(np.log10(batch.p_terminate), -2, 0)
    _is_uniform(np.log10(batch.p_respawn), -3, -1)
    _is_log_uniform_over(batch.max_steps_in_episode, *limits)


def _is_log_uniform_over(values, low, high):
    """Of whole numbers: uniform once each is spread over its own share of the logarithm."""
    values = np.asarray(values)
    assert values.min() >= low
    assert values.max() <= high
    within = np.random.default_rng(0).random(len(values))
    spread = (1 - within) * np.log(values) + within * np.log(values + 1)
    _is_uniform(spread, np.log(low), np.log(high + 1))


MAZES = {  # how many walls minimax has in each
    "sixteen_rooms": 46,
    "sixteen_rooms_2": 53,
    "labyrinth": 72,
    "labyrinth_flipped": 72,
    "labyrinth_2": 72,
    "standard_maze": 73,
    "standard_maze_2": 72,
    "standard_maze_3": 71,
    "small_corridor": 71,
}


def test_mazes_have_their_walls_and_draw_the_rest():
    env, _ = envs.make("gridworld/mazes")
    assert (env.height, env.width, env.num_objects, env.observation) == (13, 13, 3, "index")
    batch = _sample("mazes", 2000)
    _assert_nothing_in_a_wall(batch)
    assert not batch.shuffled.any()  # an index does not show objects that change cells
    assert batch.used.all()
    _is_uniform(batch.reward, 0, 1)
    _is_uniform(np.log10(batch.p_terminate), -2, 0)
    _is_uniform(np.log10(batch.p_respawn), -3, -1)
    _is_log_uniform_over(batch.max_steps_in_episode, 25, 50)
    walls = {name: levels.sample(jax.random.key(0), name).wall.tolist() for name in MAZES}
    assert {name: sum(wall) for name, wall in walls.items()} == MAZES
    assert {tuple(wall) for wall in walls.values()} == {tuple(wall) for wall in batch.wall.tolist()}


def test_the_small_corridor_is_a_comb_of_dead_ends():
    drawn = ["." * 13] + [".#.#.#.#.#.#."] * 5 + [".###########."] + [".#.#.#.#.#.#."] * 5 + ["." * 13]
    level = levels.sample(jax.random.key(0), "small_corridor")
    np.testing.assert_array_equal(level.wall, np.array([[c == "#" for c in row] for row in drawn]).ravel())


LIFETIMES = {  # of 64 x 20 steps each
    **dict.fromkeys([*PAPER, *CODE, *MAZES, "tabular", "mazes", "large"], 2500),
    **dict.fromkeys(SHUFFLED, 25_000),
    "small": 250,
    "medium": 1000,
    "all": 1000,
    "all_shortlife": 250,
}


def test_lifetimes_are_those_of_the_papers():
    for name, updates in LIFETIMES.items():
        assert levels.sample_lifetime(jax.random.key(0), name) == updates * 1280
    for name in ("all_vrandlife", "small_vrandlife"):
        draw = jit(jax.vmap(partial(levels.sample_lifetime, name=name)))
        lives = np.asarray(draw(jax.random.split(jax.random.key(0), 2000)))
        assert lives.dtype == np.float32
        assert not (lives % 1280).any()
        _is_log_uniform_over(lives / 1280, 10, 250)
    assert set(levels.available()) == {*LIFETIMES, "all_vrandlife", "small_vrandlife"}


@pytest.mark.parametrize(("name", "base"), [("all_shortlife", "all"), ("small_vrandlife", "small")])
def test_a_lifetime_in_the_name_leaves_the_worlds_as_they_are(name, base):
    jax.tree.map(np.testing.assert_array_equal, _sample(name, 4), _sample(base, 4))


def test_hundreds_of_different_levels_are_one_vmap():
    env, _ = envs.make("gridworld/all")
    count = 512
    batch = _sample("all", count)
    assert len(set(batch.reward[:, 0].tolist())) == count
    keys = jax.random.split(jax.random.key(0), count)
    actions = jnp.arange(count) % env.num_actions
    obs, state = jit(jax.vmap(env.reset))(keys, batch)
    out = jit(jax.vmap(env.step))(keys, state, actions, batch)
    assert obs.shape == out[0].shape == (count,)
    assert (np.bincount(state.position) > 0).sum() > 50
    for i in (0, 100, 511):
        alone = jit(env.step)(keys[i], _pick(state, i), actions[i], _pick(batch, i))
        jax.tree.map(np.testing.assert_array_equal, alone, _pick(out, i))


@pytest.mark.parametrize(
    ("name", "actions"), [("all", "cross"), ("tabular", "collect"), ("mazes", "square"), ("rand_small", "cross")]
)
def test_keeps_the_contract(name, actions):
    env, level = envs.make(f"gridworld/{name}", actions=actions, observation="planes")
    assert env.name == f"gridworld/{name}"
    envs.check(env, level)


def test_shuffled_objects_come_back_anywhere_but_in_walls():
    env, level = envs.make("gridworld/rand_small")
    agents, steps = 64, 1000
    actions = np.random.default_rng(0).integers(env.num_actions, size=(agents, steps))
    many = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (agents, *leaf.shape)), level)
    _, _, (reached, *_) = jax.tree.map(
        np.asarray, _play(env, many, jax.random.split(jax.random.key(0), agents), actions)
    )
    free = set(range(49)) - {9, 25}
    assert set(reached.position.ravel().tolist()) == free
    back = ~reached.present[:, :-1] & reached.present[:, 1:] & (np.diff(reached.time) == 1)[..., None]
    assert back.sum() > 1000
    assert set(reached.cell[:, 1:][back].tolist()) == free
    assert set(reached.cell.ravel().tolist()) == free


_level = partial(make_level, 2, 2, objects=[[1, 0, 0]], max_steps=9)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: _level(walls=range(4)), "a level needs a free cell, and walls fill all 4"),
        (lambda: _level(walls=[1, 4]), "walls must lie on the 2 x 2 grid, in cells 0 to 3, and .4. do not"),
        (lambda: _level(walls=[-1]), "walls must lie on the 2 x 2 grid, in cells 0 to 3, and .-1. do not"),
        (lambda: _level(objects=[[1, 1.5, 0]]), "must be probabilities, in .0, 1., and one is .1.5."),
        (lambda: _level(objects=[[1, 0, -0.1]]), "must be probabilities, in .0, 1., and one is .-0.1."),
        (lambda: _level(objects=[[1, float("nan"), 0]]), "must be probabilities, in .0, 1., and one is .nan."),
        (lambda: _level(objects=[[float("inf"), 0, 0]]), "rewards must be finite, and one is not"),
        (lambda: _level(objects=[]), "a level needs at least one object, and has none"),
        (lambda: _level(objects=[[1, 0, 0]] * 2, cells=[1], start=0), "there are 2 objects and 1 cells"),
        (lambda: _level(cells=[3], start=0, walls=[3]), "objects must lie in free cells, and cells .3. do not all"),
        (lambda: _level(cells=[4], start=0), "objects must lie in free cells, and cells .4. do not all"),
        (lambda: _level(cells=[3]), "start must be given with the cells of objects"),
        (lambda: _level(cells=[3], start=1, walls=[1]), "start must be a free cell, and is 1"),
        (lambda: _level(max_steps=0), "max_steps must be at least 1, and is 0"),
        (lambda: _level(padded=(2, 1, 1)), "a family of 2 x 1 with 1 objects is too small for this level"),
        (lambda: GridWorld(0, 2, 1), "height must be at least 1, and is 0"),
        (lambda: GridWorld(2, 2, 0), "num_objects must be at least 1, and is 0"),
        (lambda: GridWorld(2, 2, 1, actions="jump"), "actions must be one of cross, square, collect, and is 'jump'"),
        (lambda: GridWorld(2, 2, 1, observation="x"), "observation must be 'index' or 'planes', and is 'x'"),
        (lambda: GridWorld(8, 8, 25), "25 objects on 64 cells have more states than an integer can number"),
        (lambda: envs.make("gridworld/all", actions="jump"), "actions must be one of cross, square, collect"),
        (lambda: envs.make("gridworld/alll"), "Unknown environment 'gridworld/alll'; did you mean 'gridworld/all'?"),
        (
            lambda: levels.sample(jax.random.key(0), "labyrint"),
            "Unknown grid worlds 'labyrint': did you mean 'labyrinth'",
        ),
        (
            lambda: levels.sample_lifetime(jax.random.key(0), "denze"),
            "Unknown grid worlds 'denze': did you mean 'dense'",
        ),
        (lambda: levels.sample(jax.random.key(0), "§"), "Unknown grid worlds '§': there are dense, sparse, "),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        make()
    assert str(error.value).endswith((".", "?"))
    assert "\n" not in str(error.value)
