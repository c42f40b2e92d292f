"""A response surface finds effects that are there, and objectives read off it are what the regression says."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import learned_objectives as lo
from benchmarks import surface
from benchmarks.sensitivity import NAMES, SIGMA

FEATURES = (len(surface.INPUTS) - 1) * len(NAMES) + len(surface.EVEN)
SEEN = np.array([[1.0, 0.25, 0, 1, 1, 0, 0], [1.0, 0.75, 0, 0, 1, 0, 2]])  # inputs at two moments of lives
WIDTH, LAMBDA = NAMES.index("width (A < 0)"), NAMES.index("lambda")


def lives(effects, late, noise, count=160, seed=0):
    """Returns whose logarithm is linear in the numbers."""
    rng = np.random.default_rng(seed)
    z = surface.padded(rng.normal(size=(count, 2, len(NAMES))))
    return z, np.exp(1.0 + 0.3 * (z[:, 0] @ effects + z[:, 1] @ late + noise * rng.normal(size=count)))


def test_known_effects_are_found_in_units_of_the_noise():
    effects, late = np.zeros(len(NAMES)), np.zeros(len(NAMES))
    effects[WIDTH], late[LAMBDA] = 1.0, -0.8
    found = surface.fitted({("a", 512): [lives(effects, late, noise=0.5, count=600)]})["a", 512]
    assert found.effect[WIDTH] == pytest.approx(1.0 / 0.5, rel=0.1)
    assert found.effect[len(NAMES) + LAMBDA] == pytest.approx(-0.8 / 0.5, rel=0.1)
    rest = np.delete(found.effect, [WIDTH, len(NAMES) + LAMBDA])
    assert np.abs(rest).max() < 0.25
    # Var of the signal over that of all: (1 + 0.64) / (1 + 0.64 + 0.25).
    assert found.explained == pytest.approx(1.64 / 1.89, abs=0.05)


def test_where_nothing_matters_all_effects_are_small():
    nothing = np.zeros(len(NAMES))
    found = surface.fitted({("a", 512): [lives(nothing, nothing, noise=1.0)]})["a", 512]
    assert found.explained < 0.1
    assert np.abs(found.effect).max() < 0.3


def test_a_cell_of_few_lives_learns_from_the_same_game_and_keeps_what_is_its_own():
    """Width matters everywhere; lambda in one game alone. Twelve lives could not show either."""
    width, both = np.zeros(len(NAMES)), np.zeros(len(NAMES))
    width[WIDTH] = both[WIDTH] = 1.0
    both[LAMBDA] = 1.0
    nothing = np.zeros(len(NAMES))
    cells = {
        ("a", 512): [lives(width, nothing, 0.5, 300, 1)],
        ("b", 512): [lives(both, nothing, 0.5, 300, 2)],
        ("a", 1024): [lives(width, nothing, 0.5, 12, 3)],
        ("b", 1024): [lives(both, nothing, 0.5, 12, 4)],
    }
    found = surface.fitted(cells)
    for cell in cells:
        assert found[cell].effect[WIDTH] > 0.8, cell
        assert (found[cell].effect[LAMBDA] > 0.6) == (cell[0] == "b"), cell


def test_the_probability_is_that_of_a_normal_difference():
    effect = np.zeros(FEATURES)
    effect[WIDTH] = 1.5
    known = surface.Surface(effect, 1.0)
    rows = np.zeros((len(surface.INPUTS), len(NAMES)))
    assert surface.better(known, rows, 65_536) == 0.5
    # P(X > Y), X ~ N(1.5, 1), Y ~ N(0, 1), by a library.
    rows[0, WIDTH] = 1.0
    assert surface.better(known, rows, 65_536) == pytest.approx(scipy.stats.norm(1.5, 2**0.5).sf(0))
    # The row of log10 N - 5.5 counts as a constant in lives of 10^6 steps, where it is 0.5.
    rows[0, WIDTH], rows[surface.LENGTH, WIDTH] = 0.0, 2.0
    assert surface.better(known, rows, 1_000_000) == pytest.approx(scipy.stats.norm(1.5, 2**0.5).sf(0))


@pytest.mark.parametrize(
    ("name", "moves"), [("tuned_ppo", False), ("ta_tuned_ppo", True), ("clip", False), ("ta_clip", True)]
)
def test_a_family_moves_its_numbers_alone_and_stays_within_the_radius(name, moves):
    """Lambda should rise in short lives and fall in long ones: a blind family cannot."""
    effect = np.zeros(FEATURES)
    short, long = effect.copy(), effect.copy()
    short[LAMBDA], long[LAMBDA], short[WIDTH], long[WIDTH] = 1.0, -1.0, 0.1, 0.1
    surfaces = {("a", 65_536): surface.Surface(short, 1.0), ("a", 1_048_576): surface.Surface(long, 1.0)}
    family = surface.FAMILIES[name]
    rows = surface.read_off(family, surfaces, SEEN)
    assert not np.delete(rows, family.numbers, axis=1).any()
    assert (np.abs(rows[1:]).max() > 0.1) == moves
    for (_, steps), _ in surfaces.items():
        constant, late = surface.at_length(rows, steps)[[0, 1]]
        assert np.mean([(constant + t * late) @ (constant + t * late) for t in (0.25, 0.75)]) <= 9.0 + 1e-6
        assert constant @ constant + late @ late <= 3.5**2 + 1e-6
    assert rows[0, WIDTH] > 0.05
    if moves:
        assert surface.at_length(rows, 65_536)[0][LAMBDA] > 0.5 > -0.5 > surface.at_length(rows, 1_048_576)[0][LAMBDA]


@pytest.mark.parametrize("name", surface.FAMILIES)
def test_the_objective_has_the_numbers_of_its_rows(name):
    family = surface.FAMILIES[name]
    size = len(family.numbers) * len(family.moving)
    rows = surface.unpack(family, np.random.default_rng(0).normal(size=size))
    objective = surface.objective_of(family, rows)
    objective.validate()
    objective.drift.validate()
    seen = lo.Statistics(jnp.float32(0.02), jnp.float32(0.7), jnp.float32(0.4), jnp.float32(0.05))
    progress = lo.Progress(jnp.float32(262_144), jnp.float32(1_048_576), seen)
    # 1, n/N, log10 N - 5.5, KL / 0.01, entropy, explained variance, clipped / 0.1
    inputs = np.array([1.0, 0.25, np.log10(1_048_576) - 5.5, 2.0, 0.7, 0.4, 0.5])
    expected = SIGMA * inputs @ rows
    found = np.broadcast_to(np.asarray(objective.drift.at(progress)), (2, 6)).reshape(-1)
    np.testing.assert_allclose(found, expected[:12], atol=1e-5)
    limited = np.clip(expected, -4, 4)
    assert float(objective.settings(progress).gae_lambda) == pytest.approx(
        max(1 - 0.05 * np.exp(limited[NAMES.index("lambda")]), 0.0), abs=1e-5
    )
    assert float(objective.settings(progress).entropy_coef) == pytest.approx(
        0.01 * np.exp(limited[NAMES.index("entropy_coef")]), rel=1e-4
    )


@pytest.mark.parametrize("name", surface.SETS)
def test_the_numbers_of_a_cell_are_those_its_candidates_had(name, monkeypatch):
    """Candidates given to the lives have the numbers that the cell records, and PPO's where nothing is drawn."""
    lives, given = surface.SETS[name], []
    monkeypatch.setattr(surface, "returns", lambda problem, drawn, key: given.append(drawn) or np.zeros((3, 1)))
    cell = surface.Cell(("Breakout-MinAtar",), 65_536, (3,))
    numbers, _ = lives.measure(cell, 0)
    drift, schedules = (np.asarray(x) for x in given[0])
    np.testing.assert_allclose(numbers[:, : drift.shape[1], :12], drift.reshape(*drift.shape[:2], 12))
    np.testing.assert_allclose(numbers[:, : drift.shape[1], 12:], schedules)
    assert not numbers[:, surface.LENGTH].any()
    assert numbers[:, surface.STATISTICS].any() == lives.statistics
    assert not np.delete(numbers, lives.numbers, axis=2).any()
    assert (numbers[:, surface.TIME][:, lives.numbers] != 0).all()


def test_an_objective_for_some_lengths_is_read_off_them_alone():
    effect = np.zeros(FEATURES)
    short, long = effect.copy(), effect.copy()
    short[LAMBDA], long[LAMBDA] = 1.0, -1.0
    surfaces = {("a", 2**16): surface.Surface(short, 1.0), ("a", 2**20): surface.Surface(long, 1.0)}
    for name, sign in (("short_ta_tuned_ppo", 1.0), ("long_ta_tuned_ppo", -1.0)):
        rows = surface.read_off(surface.FAMILIES[name], surfaces, SEEN)
        assert sign * rows[0, LAMBDA] > 1.0
        assert not rows[surface.LENGTH].any()


def test_effects_of_statistics_are_found_and_games_with_several_sets_of_lives_pool_them():
    rng = np.random.default_rng(5)
    row = surface.INPUTS.index("entropy")

    def drawn(count):
        z = np.zeros((count, len(surface.INPUTS), len(NAMES)))
        z[:, row, LAMBDA] = rng.normal(size=count)
        return z, z[:, row, LAMBDA] + rng.normal(size=count)

    found = surface.fitted({("a", 512): [drawn(300), drawn(300)]})["a", 512].effect
    features = np.zeros((1, len(surface.INPUTS), len(NAMES)))
    features[0, row, LAMBDA] = 1.0
    assert surface.features(features)[0] @ found == pytest.approx(1.0, abs=0.15)  # in deviations of the residuals


def test_a_diverged_agent_counts_as_the_worst():
    nothing = np.zeros(len(NAMES))
    z, returned = lives(nothing, nothing, 1.0, 200)
    returned[z[:, 0, WIDTH] > 0.0] = np.nan
    assert surface.fitted({("a", 512): [(z, returned)]})["a", 512].effect[WIDTH] < -0.3
