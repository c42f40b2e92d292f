"""Craftax, Jumanji, XLand-MiniGrid and NAVIX: an episode of ours is one of the suite. A suite that is missing is skipped."""

import pickle
import re
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.spaces import Box, Discrete

import envs
from envs.suites.adapter import Adapter, one_hot
from tests.test_imports import imports, sources

ROOT = Path(envs.__file__).parents[1]
PREFIXES = ("craftax", "jumanji", "xminigrid", "navix")
NAMES = [name for name in envs.available() if name.startswith(tuple(f"{prefix}/" for prefix in PREFIXES))]
QUICK = ("jumanji/Game2048", "jumanji/RubiksCube", "jumanji/Minesweeper", "xminigrid/MemoryS8", "navix/DoorKey-5x5")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def made(name, **options):
    pytest.importorskip(name.partition("/")[0])
    return envs.make(name, **options)


# Without a suite


class Count(Adapter):
    """Ends at 3. Its state is its key and the sum of its actions, both as Python and NumPy make them."""

    def __init__(self, task):
        super().__init__(f"count/{task}", 5)
        self.action_mask = lambda state, params: state.mask

    def start(self, key, params):
        return np.zeros(2), (key, 0), jnp.ones(2, bool)

    def advance(self, key, inner, action, params):
        total = inner[1] + action
        return jnp.stack([total, total]), (inner[0], total), jnp.array([True, False]), total * 2, total >= 3

    def observation_space(self, params):
        return Box(0.0, 3.0, (2,), jnp.float32)

    def action_space(self, params=None):
        return Discrete(2)


def test_an_adapter_separates_the_time_limit_from_the_end():
    env, params = Count("up"), Count("up").default_params
    envs.check(env, params)
    assert (env.name, env.num_actions, params.max_steps_in_episode) == ("count/up", 2, 5)
    _, state = env.reset_env(jax.random.key(7), params)
    np.testing.assert_array_equal(state.inner[0], jax.random.PRNGKey(7))
    np.testing.assert_array_equal(env.action_mask(state, params), [True, True])
    ends = []
    for action in (1, 0, 1, 1):
        _, state, reward, terminated, info = env.step_env(jax.random.key(0), state, jnp.int32(action), params)
        ends.append((float(reward), bool(terminated), bool(env.is_truncated(state, params)), float(info["discount"])))
    assert ends == [(2, False, False, 1), (2, False, False, 1), (4, False, False, 1), (6, True, False, 0)]
    np.testing.assert_array_equal(env.action_mask(state, params), [True, False])
    _, state = env.reset_env(jax.random.key(7), params)
    for time in range(1, 6):
        _, state, _, terminated, _ = env.step_env(jax.random.key(0), state, jnp.int32(0), params)
        assert (bool(terminated), bool(env.is_truncated(state, params))) == (False, time == 5)
    assert pickle.loads(pickle.dumps(env)).name == "count/up"


def test_integers_become_zeros_and_ones():
    values = np.array([[[1, 0], [2, 1]]], np.uint8)
    expected = [0, 1, 0, 1, 0, 0, 0, 1, 0, 1]  # by hand: of each cell one of three, then one of two
    np.testing.assert_array_equal(one_hot(values, (3, 2)), expected)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_suite_is_behind_one_door_and_has_an_extra(prefix):
    importers = {str(file.relative_to(ROOT)) for package in ("envs", "discover") for file in sources(package)
                 if prefix in {*imports(file)}}  # fmt: skip
    assert importers == {f"envs/suites/{prefix}.py"}
    suite = envs.suites.of(f"{prefix}/")
    assert suite is not None
    assert suite.install == f"discover-rl[{prefix}]"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert re.fullmatch(rf"{prefix}>=[\d.]+", *extras[prefix])


@pytest.mark.parametrize("name", ["craftax/Symbolic", "jumanji/Snake", "xminigrid/FourRooms", "navix/Empty-5x5"])
def test_a_missing_suite_is_one_sentence(name, monkeypatch):
    prefix = name.partition("/")[0]
    assert name in envs.available()
    monkeypatch.setattr(envs, "_built", {})
    monkeypatch.delitem(sys.modules, f"envs.suites.{prefix}", raising=False)
    for module in [module for module in sys.modules if module.partition(".")[0] == prefix]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, prefix, None)
    with pytest.raises(ValueError, match=rf"^'{name}' needs the package {prefix}[a-z_.]*, which is not installed: pip install "
                       rf"'discover-rl\[{prefix}\]'\.$"):  # fmt: skip
        envs.make(name)


@pytest.mark.parametrize(
    ("name", "why"),
    [("jumanji/Sokoban", "it downloads its levels"), ("xminigrid/XLand-R1-9x9", "which xminigrid downloads")],
)
def test_a_task_that_is_left_out_says_why(name, why):
    assert name not in envs.available()
    with pytest.raises(ValueError, match=f"^'{name}' is left out: .*{why}"):
        envs.make(name)


# With the suites


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in NAMES if n not in QUICK)])
def test_keeps_the_contract(name):
    env, params = made(name)
    assert env.name == name
    assert params.max_steps_in_episode.dtype == np.int32
    envs.check(env, params)
    assert pickle.loads(pickle.dumps(env)).name == name


def eye(values, size, low=0):
    return np.eye(size, dtype=np.float32)[np.asarray(values) - low].ravel()


SEEN = {  # what an observation of ours is, by hand and in NumPy, from that of the suite
    "Snake": lambda o: [np.asarray(o.grid).ravel(), [o.step_count / 4000]],
    "Game2048": lambda o: [eye(o.board, 18)],
    "Knapsack": lambda o: [o.weights, o.values, o.packed_items],
    "RubiksCube": lambda o: [eye(o.cube, 6), [o.step_count / 200]],
    "RubiksCube-partly-scrambled": lambda o: [eye(o.cube, 6), [o.step_count / 20]],
    "Minesweeper": lambda o: [eye(o.board, 10, -1), [o.num_mines / 99], [o.step_count / 90]],
    "Maze": lambda o: [*(eye(x, 10) for p in (o.agent_position, o.target_position) for x in (p.row, p.col)),
                       np.asarray(o.walls).ravel(), [o.step_count / 100]],
}  # fmt: skip


def of_jumanji(task):
    """(start, step, observation of ours, mask) of the suite: start(key) and step(state, action) -> state, seen, reward, done."""
    import jumanji

    env = jumanji.make(max(name for name in jumanji.registered_environments() if name.rpartition("-v")[0] == task))

    def step(state, action):
        action = jnp.stack(jnp.divmod(action, 10)) if task == "Minesweeper" else action
        state, timestep = env.step(state, action)
        return state, timestep.observation, timestep.reward, timestep.last()

    start = lambda key: (lambda state, timestep: (state, timestep.observation))(*env.reset(key))
    mask = lambda o: np.ravel(o.action_mask) if hasattr(o, "action_mask") else None
    return start, step, lambda o: np.concatenate([np.asarray(x, np.float32) for x in SEEN[task](o)]), mask


def of_xminigrid(task):
    import xminigrid

    env, params = xminigrid.make(f"MiniGrid-{task}")

    def step(state, action):
        timestep = env.step(params, state, action)
        return timestep, timestep.observation, timestep.reward, timestep.last()

    start = lambda key: (lambda timestep: (timestep, timestep.observation))(env.reset(params, key))
    return start, step, lambda o: cells(o, (13, 12)), lambda o: None


def of_navix(task):
    import navix

    env = navix.make(f"Navix-{task}-v0")

    def step(state, action):
        timestep = env.step(state, action)
        return timestep, timestep.observation, timestep.reward, timestep.is_done()

    start = lambda key: (lambda timestep: (timestep, timestep.observation))(env.reset(key))
    return start, step, lambda o: cells(o, (11, 6, 4)), lambda o: None


def cells(o, sizes):
    planes = [np.asarray(o)[..., k, None] == np.arange(size) for k, size in enumerate(sizes)]
    return np.concatenate(planes, axis=-1).ravel()


@pytest.mark.parametrize(
    "name",
    [
        *(f"jumanji/{task}" for task in ("Snake", "Game2048", "RubiksCube-partly-scrambled")),
        *(pytest.param(f"jumanji/{task}", marks=pytest.mark.slow) for task in ("Knapsack", "Minesweeper", "Maze")),
        *("xminigrid/DoorKey-5x5", "navix/DoorKey-5x5"),
        *(pytest.param(f"xminigrid/{task}", marks=pytest.mark.slow) for task in ("MemoryS8", "FourRooms", "Unlock")),
        *(
            pytest.param(f"navix/{task}", marks=pytest.mark.slow)
            for task in ("KeyCorridorS3R1", "Dynamic-Obstacles-5x5")
        ),
    ],
)
def test_an_episode_is_an_episode_of_the_suite(name):
    env, params = made(name)
    prefix, task = name.split("/")
    start, step, seen, mask = {"jumanji": of_jumanji, "xminigrid": of_xminigrid, "navix": of_navix}[prefix](task)
    space, rng = env.action_space(params), np.random.default_rng(0)
    our_step = jax.jit(lambda *args: (*(out := env.step_env(*args)), env.is_truncated(out[1], args[3])))
    state, observation = jax.jit(start)(jax.random.PRNGKey(3))
    obs, ours = env.reset_env(jax.random.key(3), params)
    step = jax.jit(step)
    for _ in range(120):
        np.testing.assert_allclose(obs, seen(observation), atol=1e-6)
        if env.action_mask is None:
            action = space.sample(jax.random.key(rng.integers(2**31)))
        else:
            valid = np.asarray(env.action_mask(ours, params))
            np.testing.assert_array_equal(valid, mask(observation))
            action = jnp.int32(rng.choice(np.flatnonzero(valid)))
        state, observation, their_reward, done = step(state, action)
        obs, ours, reward, terminated, _, truncated = our_step(jax.random.key(0), ours, action, params)
        np.testing.assert_allclose(reward, their_reward, atol=1e-6)
        assert bool(terminated | truncated) == bool(done)
        if done:
            break
    np.testing.assert_allclose(obs, seen(observation), atol=1e-6)


def test_a_joint_mask_becomes_one_choice():
    env, params = made("jumanji/Minesweeper")
    _, state = env.reset_env(jax.random.key(0), params)
    _, state, *_ = jax.jit(env.step_env)(jax.random.key(0), state, jnp.int32(37), params)
    assert np.flatnonzero(~np.asarray(env.action_mask(state, params))).tolist() == [37]
    assert np.argwhere(np.asarray(state.inner.board) >= 0).tolist() == [[3, 7]]


def played(env, params, actions, key=0, state=None):
    """(reward, terminated, truncated) of each step."""
    step = jax.jit(lambda *args: (*(out := env.step_env(*args)), env.is_truncated(out[1], args[3])))
    state = env.reset_env(jax.random.key(key), params)[1] if state is None else state
    ends = []
    for action in actions:
        action = action(state) if callable(action) else action
        _, state, reward, terminated, _, truncated = step(jax.random.key(1), state, jnp.int32(action), params)
        ends.append((round(float(reward), 4), bool(terminated), bool(truncated)))
    return ends


def test_jumanji_is_truncated_by_the_limit_and_terminated_by_the_game():
    env, params = made("jumanji/Snake", time_limit=5)
    assert params.max_steps_in_episode == 5
    valid = [lambda state: np.argmax(state.mask)] * 5
    assert [end[1:] for end in played(env, params, valid)] == [(False, False)] * 4 + [(False, True)]
    assert any(end[1] for end in played(env, params, [0] * 12))  # upwards into the wall; 12 rows
    longer = params.replace(max_steps_in_episode=np.int32(6))
    assert [end[1:] for end in played(env, longer, valid)][-1] == (False, False)


def test_minigrid_is_truncated_by_the_limit_and_terminated_at_the_goal():
    env, params = made("xminigrid/Empty-5x5")
    to_the_goal = [0, 0, 1, 0, 0]  # two cells right, two cells down
    assert played(env, params, to_the_goal)[-2:] == [(0.0, False, False), (1 - 0.9 * 5 / 100, True, False)]
    few = params.replace(max_steps_in_episode=np.int32(3))
    assert played(env, few, to_the_goal[:3])[-1] == (0.0, False, True)
    exact = params.replace(max_steps_in_episode=np.int32(5))
    assert played(env, exact, to_the_goal)[-1] == (0.1, True, True)  # the suite's reward at its limit


def test_navix_is_truncated_by_the_limit_and_terminated_at_the_goal():
    env, params = made("navix/Empty-5x5")
    to_the_goal = [2, 2, 1, 2, 2]
    assert played(env, params, to_the_goal)[-2:] == [(0.0, False, False), (1.0, True, False)]
    few = params.replace(max_steps_in_episode=np.int32(3))
    assert played(env, few, to_the_goal[:3])[-1] == (0.0, False, True)


@pytest.mark.slow
def test_craftax_is_the_suite_and_is_truncated_by_the_limit_and_terminated_by_death():
    env, params = made("craftax/Classic-Symbolic")
    from craftax.craftax_env import make_craftax_env_from_name

    theirs = make_craftax_env_from_name("Craftax-Classic-Symbolic-v1", auto_reset=False)
    their_params = theirs.default_params.replace(max_timesteps=4)
    params = params.replace(max_steps_in_episode=np.int32(4))
    step = jax.jit(env.step_env)
    observation, their_state = theirs.reset(jax.random.PRNGKey(3), their_params)
    obs, state = jax.jit(env.reset_env)(jax.random.key(3), params)
    for time in range(1, 5):
        np.testing.assert_array_equal(obs, observation)
        key, action = jax.random.key(time), jnp.int32(time)
        observation, their_state, their_reward, done, _ = theirs.step(
            jax.random.PRNGKey(time), their_state, action, their_params
        )
        obs, state, reward, terminated, _ = step(key, state, action, params)
        assert float(reward) == float(their_reward)
        assert not terminated
        assert bool(env.is_truncated(state, params)) == bool(done) == (time == 4)
    dead = state.replace(inner=state.inner.replace(player_health=jnp.zeros_like(state.inner.player_health)))
    assert bool(step(jax.random.key(0), dead, jnp.int32(0), params)[3])
