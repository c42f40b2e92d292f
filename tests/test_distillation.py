"""Formulas for drifts: values and slopes in NumPy, constants by least squares, the front, and drifts that are found again."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import discover
import learned_objectives as lo
from discover import cli
from discover.searches import numeric, proposers
from discover.searches.distillation import Distillation, Formula, front_of
from discover.searches.fitting import error_of, halves, rounded, samples_of, tuned
from discover.searches.program_family import PPO
from discover.searches.rewrites import folded, reductions
from learned_objectives import expressions
from learned_objectives.parsing import parse
from tests.test_program_search import archive_of

SMALL = discover.DistilConfig(generations=4, children=24, operations=8)


def test_values_and_slopes_are_those_of_jax():
    texts = [
        *proposers.random_texts(archive_of(seed=3), 24),
        PPO,
        "log(r1) / A",
        "exp(30 * A)",
        "abs(r1) * 1000000 * 1e6",
    ]
    x, a = np.random.default_rng(0).normal(size=(2, 40))
    with jax.enable_x64(True):
        for text in texts:
            code, constants = parse(text)

            def of(x, a, code=code, constants=constants):
                given = {"log_r": x, "r1": jnp.expm1(x), "A": a}
                return jnp.asarray(expressions.evaluate(code, jnp.array(constants, jnp.float64), given), float)

            value, slope = jax.vmap(jax.value_and_grad(of))(jnp.asarray(x), jnp.asarray(a))
            zero = np.zeros_like(x)
            dual = {"log_r": (x, zero + 1), "r1": (np.expm1(x), np.exp(x)), "A": (a, zero)}
            found = numeric.evaluate(code, np.array(constants), {k: numeric.Dual(*v) for k, v in dual.items()})
            np.testing.assert_allclose(np.broadcast_to(found.value, x.shape), value, rtol=1e-9, err_msg=text)
            steep = np.abs(slope) >= expressions.LIMIT  # where JAX limits the derivative
            slopes = np.where(steep, slope, np.broadcast_to(found.slope, x.shape))
            np.testing.assert_allclose(slopes, slope, rtol=1e-7, atol=1e-12, err_msg=text)


def test_sets_of_constants_are_evaluated_at_once():
    code, _ = parse("3 * A + 2")
    variables = {"A": numeric.Dual(np.array([1.0, 5.0]), np.zeros(2))}
    found = numeric.evaluate(code, np.array([[3.0, 2.0], [1.0, 0.0]]), variables)
    np.testing.assert_array_equal(found.value, [[5.0, 17.0], [1.0, 5.0]])


def test_samples_are_values_and_slopes_of_the_drift():
    found = samples_of(lo.SPO(0.5))
    r1, a = np.expm1(found.variables["log_r"].value), found.variables["A"].value
    np.testing.assert_allclose(found.value, np.abs(a) * r1**2, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.slope, 2 * np.abs(a) * r1 * (r1 + 1), rtol=1e-5, atol=1e-7)
    assert found.names == ("log_r", "r1", "A")
    below, above = halves(found)
    assert (below.variables["A"].value < 0).all()
    assert (above.variables["A"].value > 0).all()
    assert len(below.value) + len(above.value) == len(found.value)


def test_samples_differ_in_time_where_the_drift_does():
    assert samples_of(lo.KL()).names == ("log_r", "r1", "A", "t")
    assert samples_of(lo.TimedClip()).names == ("log_r", "r1", "A", "t", "log_N")
    assert samples_of(lo.TimedClip(negative=0.3, power=0.0)).names == ("log_r", "r1", "A", "t")


def test_the_error_is_zero_for_the_drift_and_one_for_nothing():
    samples = samples_of(lo.Clip(0.3))
    assert error_of(*parse("0"), samples) == pytest.approx(1.0)
    assert error_of(*parse(PPO.replace("0.2", "0.3")), samples) < 1e-6
    value, slope = ((expected**2).mean() for expected in (samples.value, samples.slope))
    half = 0.5 * ((0.9 * samples.value) ** 2).mean() / value + 0.5 * ((0.9 * samples.slope) ** 2).mean() / slope
    assert error_of(*parse("0.1 * " + PPO.replace("0.2", "0.3")), samples) == pytest.approx(half**0.5, rel=1e-4)
    assert error_of(*parse("exp(30) * exp(30)"), samples) > 1e6


def test_constants_are_fitted_and_rounded():
    samples = samples_of(lo.DPO(1.5, 0.4))
    text = "where(A < 0, relu(log_r * A - 1 * tanh(log_r * A / 1)), relu(r1 * A - 1 * tanh(r1 * A / 1)))"
    code, start = parse(text)
    found, error = tuned(code, np.array(start), samples)
    assert error < 1e-6
    np.testing.assert_allclose(found, [0.0, 0.4, 0.4, 1.5, 1.5], rtol=1e-5)
    np.testing.assert_array_equal(rounded(code, found, samples, worse=1e-3), [0.0, 0.4, 0.4, 1.5, 1.5])


def test_a_fit_is_never_worse_than_its_start():
    samples = samples_of(lo.load("lpo_2026_11").drift)
    for text in proposers.random_texts(archive_of(seed=5), 40):
        code, constants = parse(text)
        start = np.array(constants)
        assert tuned(code, start, samples)[1] <= error_of(code, start, samples)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(1 + 2) * A", "3 * A"),
        ("max(A, A) + 0", "A"),
        ("abs(square(r1)) * 1", "square(r1)"),
        ("relu(relu(r1))", "relu(r1)"),
        ("exp(exp(exp(4)))", "exp(exp(54.598150033144236))"),
        ("A - 0 < 1 * r1", None),
        ("where(1 < 2, A, r1)", "where(1 < 2, A, r1)"),
    ],
)
def test_operations_that_change_nothing_are_left_out(text, expected):
    if expected is None:
        text, expected = f"where({text}, 1 * A, 2)", "where(A < r1, A, 2)"
    found, wanted = folded(proposers.nodes_of(text)), proposers.nodes_of(expected)
    assert [type(node) for node in found] == [type(node) for node in wanted]
    assert [x if isinstance(x, str) else pytest.approx(x, rel=1e-6) for x in wanted] == found


def test_reductions_put_an_argument_in_place_of_an_operation():
    texts = [proposers.text_of(nodes) for nodes in reductions(proposers.nodes_of("where(A < 0, -r1, A * 2)"))]
    assert sorted(texts) == sorted(
        ["where(A < 0, r1, A * 2)", "where(A < 0, -r1, 2)", "where(A < 0, -r1, A)", "A * 2", "-r1"]
    )


def test_a_front_has_what_nothing_smaller_equals():
    one, two, three, four = Formula("a", 1, 0.5), Formula("b", 3, 0.499), Formula("c", 4, 0.1), Formula("d", 4, 0.2)
    assert front_of([four, three, two, one, Formula("e", 9, 1e-9), Formula("f", 10, 1e-10)]) == (
        one,
        three,
        Formula("e", 9, 1e-9),
    )


def test_what_is_no_drift_is_on_no_front():
    proposals = iter([["r1 * A", "relu(r1)", "square(r1) - 0.1"]] * 6)
    found = list(
        Distillation(
            samples_of(lo.SPO()), discover.DistilConfig(generations=2), lambda *_: next(proposals)
        ).generations()
    )
    assert found[-1].front == ()


@pytest.fixture(scope="module")
def square(tmp_path_factory):
    """What is found for 0.35 (r - 1)^2, a drift of two operations."""
    out = tmp_path_factory.mktemp("square")
    lines = []
    front = discover.distil(lo.Tsallis(0.7, 2.0), SMALL, out=out, progress=lines.append)
    return front, out, lines


def test_a_square_is_found_again(square):
    front, _, _ = square
    best = front.formulas[-1]
    assert best.operations == 2
    assert best.error < 1e-6
    assert best.error_elsewhere < 1e-6


def test_formulas_of_a_front_are_drifts_and_files(square):
    front, out, lines = square
    sizes = [f.operations for f in front.formulas]
    assert sizes == sorted({*sizes})
    assert [f.error for f in front.formulas] == sorted((f.error for f in front.formulas), reverse=True)
    for f in front.formulas:
        lo.verify_drift(f.program)
        path = out / f"{f.operations}.safetensors"
        assert lo.load(path).drift == f.program
        assert lo.record(path)["distilled"]["text"] == f.text
        assert f.text in front.table()
    assert discover.Front.load(out / "front.json") == front
    assert (out / "front.png").stat().st_size > 5000
    assert "on the front, least error" in lines[-1]


def test_the_same_seed_gives_the_same_front(square):
    assert discover.distil(lo.Tsallis(0.7, 2.0), SMALL) == square[0]


@pytest.mark.slow
def test_dpo_is_found_again():
    front = discover.distil("dpo", discover.DistilConfig(generations=20))
    best = front.formulas[-1]
    assert best.operations <= 18
    assert best.error < 1e-6
    x, a = np.random.default_rng(1).uniform([[-1.5], [-4.0]], [[1.5], [4.0]], (2, 500)).astype(np.float32)
    np.testing.assert_allclose(best.program(jnp.asarray(x), jnp.asarray(a)), lo.DPO()(x, a), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("objective", "sentence"),
    [
        (lo.LPG.groove(jax.random.key(0), hidden=4), "a LPG has no drift to distil: give a Mirror or a drift"),
        (lo.NoDrift(), "is zero at all samples, so that there is nothing to distil"),
        (lo.SoftClip.create(sees_statistics=True), "this SoftClip reads statistics of the agent"),
        (lo.Clip(float("nan")), "not finite at the samples"),
        ("dpoo", "Unknown objective 'dpoo'; did you mean 'dpo'"),
    ],
)
def test_what_cannot_be_distilled_is_refused(objective, sentence):
    with pytest.raises(ValueError, match=sentence):
        discover.distil(objective, SMALL)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"children": 0}, "children must be at least 1, and is 0"),
        ({"operations": 101}, "operations must be at most 100, and is 101"),
        ({"seed": -1}, "seed must be at least 0, and is -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        discover.DistilConfig(**changes)


def test_a_file_that_is_no_front_is_refused(tmp_path):
    for name, text in (("a.json", "nothing"), ("b.json", "[]"), ("c.json", json.dumps({"formulas": [{"a": 1}]}))):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name} cannot be read as a front of formulas"):
            discover.Front.load(tmp_path / name)
    with pytest.raises(ValueError, match=r"none\.json cannot be read"):
        discover.Front.load(tmp_path / "none.json")


def test_the_command_writes_formulas(tmp_path, capsys):
    line = f"distil ppo --generations 2 --children 8 --operations 8 --out {tmp_path / 'out'}"
    assert cli.main(line.split()) == 0
    said = capsys.readouterr().out
    assert "operations      error  elsewhere  formula" in said
    assert "front.json, front.png and" in said
    assert discover.Front.load(tmp_path / "out/front.json").objective == "ppo"
