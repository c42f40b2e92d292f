"""A response surface finds effects that are there, and objectives read off it are what the regression says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import learned_objectives as lo
from benchmarks import surface
from benchmarks.sensitivity import NAMES, SIGMA

WIDTH, LAMBDA = NAMES.index("width (A < 0)"), NAMES.index("lambda")


def lives(effects, late, noise, count=160, seed=0):
    """Returns whose logarithm is linear in the numbers."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(count, 2, len(NAMES)))
    return z, np.exp(1.0 + 0.3 * (z[:, 0] @ effects + z[:, 1] @ late + noise * rng.normal(size=count)))


def test_known_effects_are_found_in_units_of_the_noise():
    effects, late = np.zeros(len(NAMES)), np.zeros(len(NAMES))
    effects[WIDTH], late[LAMBDA] = 1.0, -0.8
    found = surface.fitted({("a", 512): lives(effects, late, noise=0.5, count=600)})["a", 512]
    assert found.effect[WIDTH] == pytest.approx(1.0 / 0.5, rel=0.1)
    assert found.effect[len(NAMES) + LAMBDA] == pytest.approx(-0.8 / 0.5, rel=0.1)
    rest = np.delete(found.effect, [WIDTH, len(NAMES) + LAMBDA])
    assert np.abs(rest).max() < 0.25
    # Var of the signal over that of all: (1 + 0.64) / (1 + 0.64 + 0.25).
    assert found.explained == pytest.approx(1.64 / 1.89, abs=0.05)


def test_where_nothing_matters_all_effects_are_small():
    nothing = np.zeros(len(NAMES))
    found = surface.fitted({("a", 512): lives(nothing, nothing, noise=1.0)})["a", 512]
    assert found.explained < 0.1
    assert np.abs(found.effect).max() < 0.3


def test_a_cell_of_few_lives_learns_from_the_same_game_and_keeps_what_is_its_own():
    """Width matters everywhere; lambda in one game alone. Twelve lives could not show either."""
    width, both = np.zeros(len(NAMES)), np.zeros(len(NAMES))
    width[WIDTH] = both[WIDTH] = 1.0
    both[LAMBDA] = 1.0
    nothing = np.zeros(len(NAMES))
    cells = {
        ("a", 512): lives(width, nothing, 0.5, 300, 1),
        ("b", 512): lives(both, nothing, 0.5, 300, 2),
        ("a", 1024): lives(width, nothing, 0.5, 12, 3),
        ("b", 1024): lives(both, nothing, 0.5, 12, 4),
    }
    found = surface.fitted(cells)
    for cell in cells:
        assert found[cell].effect[WIDTH] > 0.8, cell
        assert (found[cell].effect[LAMBDA] > 0.6) == (cell[0] == "b"), cell


def test_the_probability_is_that_of_a_normal_difference():
    effect = np.zeros(2 * len(NAMES) + len(surface.EVEN))
    effect[WIDTH] = 1.5
    known = surface.Surface(effect, 1.0)
    constant = np.eye(len(NAMES))[WIDTH]
    # P(X > Y), X ~ N(1.5, 1), Y ~ N(0, 1), by a library.
    assert surface.better(known, constant, 0 * constant) == pytest.approx(scipy.stats.norm(1.5, 2**0.5).sf(0))
    assert surface.better(known, 0 * constant, 0 * constant) == 0.5


@pytest.mark.parametrize(
    ("name", "moves"), [("tuned_ppo", False), ("ta_tuned_ppo", True), ("clip", False), ("ta_clip", True)]
)
def test_a_family_moves_its_numbers_alone_and_stays_within_the_radius(name, moves):
    """Lambda should rise in short lives and fall in long ones: a blind family cannot."""
    effect = np.zeros(2 * len(NAMES) + len(surface.EVEN))
    short, long = effect.copy(), effect.copy()
    short[LAMBDA], long[LAMBDA], short[WIDTH], long[WIDTH] = 1.0, -1.0, 0.1, 0.1
    surfaces = {("a", 65_536): surface.Surface(short, 1.0), ("a", 1_048_576): surface.Surface(long, 1.0)}
    family = surface.FAMILIES[name]
    rows = surface.read_off(family, surfaces, radius=2.0)
    assert not np.delete(rows, family.numbers, axis=1).any()
    assert (np.abs(rows[1:]).max() > 0.1) == moves
    for (_, steps), _ in surfaces.items():
        constant, late = surface.at_length(rows, steps)
        assert constant @ constant + late @ late / 3 <= 4.0 + 1e-6
    assert rows[0, WIDTH] > 0.05
    if moves:
        assert surface.at_length(rows, 65_536)[0][LAMBDA] > 0.5 > -0.5 > surface.at_length(rows, 1_048_576)[0][LAMBDA]


@pytest.mark.parametrize("name", surface.FAMILIES)
def test_the_objective_has_the_numbers_of_its_rows(name):
    rows = surface.unpack(
        family := surface.FAMILIES[name],
        np.random.default_rng(0).normal(
            size=len(surface.FAMILIES[name].numbers) * (3 if surface.FAMILIES[name].time_aware else 1)
        ),
    )
    template = lo.ScheduledMirror.create(lo.SoftClip.create(time_aware=True), time_aware=True).replace(value_clip=0.2)
    objective = surface.objective_of(family, rows, template)
    objective.validate()
    objective.drift.validate()
    progress = lo.Progress(jnp.float32(262_144), jnp.float32(1_048_576))
    constant, late = surface.at_length(rows, 1_048_576)
    expected = SIGMA * (constant + late / 4)
    found = np.broadcast_to(np.asarray(objective.drift.at(progress)), (2, 6)).reshape(-1)
    np.testing.assert_allclose(found, expected[:12], atol=1e-5)
    assert float(objective.settings(progress).gae_lambda) == pytest.approx(
        1 - 0.05 * np.exp(expected[NAMES.index("lambda")]), abs=1e-5
    )
    assert float(objective.settings(progress).entropy_coef) == pytest.approx(
        0.01 * np.exp(expected[NAMES.index("entropy_coef")]), rel=1e-4
    )


def test_the_numbers_of_a_cell_are_those_its_candidates_had():
    """The flattened order of leaves is that of the names."""
    template = surface.problem_of(surface.FAMILY, surface.ENVS, 65_536).template
    leaves = jax.tree.leaves(template)
    assert [x.shape for x in leaves] == [(3, 2, 6), (3, 4)]
    assert len(NAMES) == 2 * 6 + 4
