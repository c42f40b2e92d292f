"""What an environment may do to those who live in it: NaN and infinity in rewards, observations and values, and what a search
makes of it."""

import copy
import dataclasses

import crash
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

import envs
from discover import AgentConfig, EvolutionConfig, Recipe, recipes
from discover.searches import curriculum as cu
from discover.searches.families import LPOConfig
from discover.searches.map_elites import MapElitesConfig
from discover.searches.pbt import PBTConfig
from discover.searches.registry import search_for
from discover.searches.rolling_search import RollingConfig
from envs import probes

pytestmark = pytest.mark.slow

ILLS = ("reward NaN", "reward inf", "reward -inf", "observation NaN", "observation -inf", "value inf")
HUGE = len(ILLS) + 1  # no ill: rewards not far from the largest number there is


@struct.dataclass
class Level(probes.Params):
    """Which of ILLS there is, counted from 1; 0: none."""

    ill: jax.Array


class Sick(probes.Probe):
    """One action is better than the other. Half of the levels have an ill, which shows from an episode's second step on."""

    name = "Sick"
    length = 4

    @property
    def default_params(self):
        return Level(np.int32(self.limit), np.int32(0))

    def sample_level(self, key):
        coin, which = jax.random.split(key)
        ill = jax.random.randint(which, (), 1, len(ILLS) + 1)
        well = jnp.where(jax.random.bernoulli(which, 0.2), HUGE, 0)
        return Level(jnp.int32(self.limit), jnp.where(jax.random.bernoulli(coin), ill, well))

    def show(self, state):
        return state.sign[None]

    def step_env(self, key, state, action, params):
        _, state, _, terminated, info = super().step_env(key, state, action, params)
        reward = jnp.where(action == 0, state.sign, -state.sign)
        ill = jnp.where(state.time > 1, params.ill, 0)
        rewards = [jnp.nan, jnp.inf, -jnp.inf, 1e37 * reward]
        reward = jnp.select([ill == 1, ill == 2, ill == 3, ill == HUGE], rewards, reward)
        # 3e38 is a number, and what a layer makes of it is not.
        seen = jnp.select([ill == 4, ill == 5, ill == 6], [jnp.nan, -jnp.inf, jnp.float32(3e38)], state.sign)
        return seen[None], state, reward, terminated, info


@pytest.fixture(scope="module", autouse=True)
def known():
    envs.register(Sick.name, Sick)
    yield
    envs._registered.pop(Sick.name)


# Two pairs, each on a level of its own: in a generation none of them, one or both have an ill.
SMALL = Recipe(
    objective=LPOConfig(width=4),
    envs=("Sick",),
    total_steps=4 * 32,
    agent=AgentConfig(num_envs=2, num_steps=16, num_minibatches=1, num_epochs=2, hidden=(8,), activation="relu"),
    search=EvolutionConfig(population=4, shared_keys="pair", sigma=0.1, chunk=1),
)
GENERATIONS = 32


def ills_of(search, keys):
    """i32[P // 2]: of the pairs whose only lives have these keys [P // 2, 1]."""
    tasks = search.settings[0].tasks
    return np.asarray(jax.vmap(lambda key: tasks(jax.random.fold_in(key, cu.TASK)).env_params.ill)(keys[:, 0]))


def is_ill(which):
    return (which > 0) & (which < HUGE)


def is_finite(tree):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def search():
    return search_for(SMALL)


@pytest.fixture(scope="module")
def generations(search):
    """(ills of the pairs, fitness f32[2, 2], state before, state after, what is logged), a row for each."""
    rows, state = [], search.init()
    for index in range(GENERATIONS):
        problem, strategy = search.problem, search.search
        keys = jax.random.split(jax.random.fold_in(problem.key("life", index), 0), (2, 1))
        population, _ = strategy._ask(problem.key("ask", index), state.search, state.generation)
        fitness = problem.fitness(population, problem.key("life", index), shared_keys="group")
        before, (state, seen) = state, search.generation(state)
        rows.append((ills_of(search, keys), np.asarray(fitness)[..., 0], before, state, seen))
    return rows


def test_there_is_every_ill_and_every_share(generations):
    assert {int(ill) for ills, *_ in generations for ill in ills} == set(range(HUGE + 1))
    assert {seen["diverged"] for *_, seen in generations} == {0.0, 0.5, 1.0}


def test_whoever_had_an_ill_diverged_and_nobody_else(generations):
    for ills, fitness, *_ in generations:
        np.testing.assert_array_equal(np.isnan(fitness), np.stack([is_ill(ills)] * 2, axis=1), err_msg=str(ills))


def test_the_log_has_their_share_and_numbers_of_the_others_alone(generations):
    for ills, *_, seen in generations:
        assert seen["diverged"] == is_ill(ills).mean()
        shown = list(seen["fitness"]["Sick"].values())
        assert shown == [None] * 3 if is_ill(ills).all() else np.isfinite(shown).all()


def test_the_mean_stays_finite_and_moves_unless_all_diverged(generations):
    moved = []
    for ills, fitness, before, after, _ in generations:
        assert is_finite(after.search)
        moved.append(not np.array_equal(before.search.mean, after.search.mean))
        if is_ill(ills).all():
            for name in ("mean", "opt_state"):
                jax.tree.map(np.testing.assert_array_equal, getattr(after.search, name), getattr(before.search, name))
        elif (fitness[:, 0] < fitness[:, 1]).any() or (
            fitness[:, 0] > fitness[:, 1]
        ).any():  # else there is nothing to learn
            assert moved[-1]
    assert GENERATIONS // 4 < sum(moved) < GENERATIONS


@pytest.mark.parametrize("shaping", ["z_score", "pairwise"])
def test_with_every_shaping_the_mean_stays_finite(search, generations, shaping):
    other = copy.copy(search)
    other.search = copy.copy(search.search)
    other.search.__dict__.pop("_tell", None)
    other.search.config = dataclasses.replace(SMALL.search, shaping=shaping)
    state = other.init()
    for _ in range(GENERATIONS):
        state, _ = other.generation(state)
        assert is_finite(state.search)


def test_rolling_lives_leave_the_mean_finite_and_their_share_in_the_log():
    rolling = RollingConfig(**(vars(SMALL.search) | {"window": 2, "shaping": "pairwise"}))
    search = search_for(dataclasses.replace(SMALL, search=rolling))
    state, shares = search.init(), []
    for index in range(12):
        ills = ills_of(search, search.search._life_keys(0, search.search.began(index)))
        before, (state, seen) = state, search.generation(state)
        shares.append(seen["diverged"])
        assert shares[-1] == is_ill(ills).mean()
        assert is_finite(state.search.strategy)
        assert shares[-1] < 1 or np.array_equal(state.search.strategy.mean, before.search.strategy.mean)
    assert {0.5, 1.0} <= set(shares)


def test_a_population_that_diverged_keeps_finite_objectives_and_is_born_anew():
    """All members have one level, another in each life."""
    config = PBTConfig(population=4, interval=4, chunk=2)
    search = search_for(dataclasses.replace(SMALL, search=config))
    state, shares = search.init(), []
    for index in range(12):
        level = search.settings[0].tasks(search.search._keys(0, index)[0]).env_params
        state, seen = search.generation(state)
        shares.append(seen["diverged"])
        assert shares[-1] == is_ill(level.ill)
        assert is_finite((state.search.objectives, state.search.rates))
        assert seen["copied"] == 0 or shares[-1] == 0
    assert set(shares) == {0.0, 1.0}


def test_an_archive_holds_no_candidate_that_diverged():
    """The only task of a search is the same in all generations: with an ill the archive stays empty."""

    def searching(seed):
        config = MapElitesConfig(population=4, chunk=1)
        search = search_for(dataclasses.replace(SMALL, search=config, seed=seed))
        (key,) = search.search._keys(0, 0)[0]
        return search, bool(is_ill(search.settings[0].tasks(key).env_params.ill))

    chosen = {ill: search for search, ill in map(searching, range(8))}
    assert set(chosen) == {False, True}
    for ill, search in chosen.items():
        state = search.init()
        for _ in range(2):
            state, seen = search.generation(state)
        assert seen["diverged"] == ill
        assert bool(state.search.archive.filled.any()) != ill
        assert is_finite(search.mean(state))
        if ill:
            jax.tree.map(np.testing.assert_array_equal, search.mean(state), search.template)


def test_a_gradient_step_leaves_out_the_groups_that_diverged():
    """Groups of two members: sums of 4 in each element are means of 2, whatever the other groups are; none at all is no step."""
    small = recipes.get("lpg_small")
    metagrad = dataclasses.replace(small.search, members=4, chunk=2)
    tiny = dataclasses.replace(small.objective, hidden=2)
    search = search_for(dataclasses.replace(small, objective=tiny, search=metagrad)).search
    objective = jax.tree.map(jnp.asarray, search.problem.template)
    opt_state, size = search.optimizer.init(objective), sum(x.size for x in jax.tree.leaves(objective))

    def stepped(*groups):
        """Each group's number in every element, or 4, and what is ill in one element of one leaf."""
        well = [4.0 if not abs(g) < 1e9 else g for g in groups]
        grads = jax.tree.map(lambda x: jnp.stack([jnp.full(x.shape, g) for g in well]), objective)
        first, *others = jax.tree.leaves(grads)
        spot = (slice(None), *(0,) * (first.ndim - 1))
        first = first.at[spot].set(jnp.array(groups))
        return search._apply(jax.tree.unflatten(jax.tree.structure(grads), [first, *others]), objective, opt_state)

    expected, _, norm, dropped = stepped(4.0, 4.0)
    assert (float(norm), float(dropped)) == (pytest.approx(2 * size**0.5), 0.0)
    for ill in (np.nan, np.inf, -np.inf, 1e20):  # the last is too large to square
        after, _, norm, dropped = stepped(4.0, ill)
        jax.tree.map(np.testing.assert_array_equal, after, expected)
        assert (float(norm), float(dropped)) == (pytest.approx(2 * size**0.5), 0.5)
        after, kept, norm, dropped = stepped(ill, np.nan)
        jax.tree.map(np.testing.assert_array_equal, (after, kept), (objective, opt_state))
        assert np.isnan(norm)
        assert dropped == 1.0


@pytest.mark.skipif(not crash.LONG, reason="compiles for 20 s")
def test_members_of_a_gradient_search_leave_the_objective_finite():
    small = recipes.get("lpg_small")
    recipe = dataclasses.replace(
        small,
        envs=SMALL.envs,
        total_steps=SMALL.total_steps,
        agent=SMALL.agent,
        objective=dataclasses.replace(small.objective, hidden=4, predictions=4),
        search=dataclasses.replace(small.search, members=2, window=1, chunk=1),
    )
    search = search_for(recipe)
    state, shares = search.init(), []
    for _ in range(24):
        levels = np.asarray(jax.device_get(state.search.members.drawn.task.env_params.ill)).ravel()
        before, (state, seen) = state, search.generation(state)
        shares.append(seen["meta"]["diverged"])
        assert (seen["meta"]["dropped_fraction"] == 1.0) == (seen["meta"]["gradient_norm"] is None)
        assert shares[-1] == (levels > 0).sum()  # huge rewards too: the outer critic squares them
        assert is_finite(state.search.objective)
        assert is_finite(state.search.opt_state)
        if seen["meta"]["gradient_norm"] is None:
            jax.tree.map(np.testing.assert_array_equal, state.search.objective, before.search.objective)
    assert {0, 1, 2} <= set(shares)
