"""Programs as arrays: the interpreter gives what the programs themselves give, of any structure in one compiled function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import learned_objectives as lo
from learned_objectives.interpreted import NAMES, Arrays, assemble, disassemble
from learned_objectives.parsing import parse
from tests.test_programs import CLIP, DPO, EXTREMES, KL, random_texts


def readable(texts, *, length=32, constants=16):
    """The programs among texts that fit."""
    for text in texts:
        try:
            yield text, lo.InterpretedProgram.of(text, length=length, constants=constants, timed=True)
        except lo.ProgramError:
            continue


def stacked(programs):
    return jax.tree.map(lambda *xs: jnp.stack(xs), *programs)


def test_a_population_of_different_programs_is_one_function(samples, progress):
    found = dict(readable([DPO, CLIP, KL, *random_texts(60, seed=4)]))
    assert len(found) > 40
    log_ratio, advantage = samples
    value_and_slope = lambda d: (
        d(log_ratio, advantage, progress),
        jax.grad(lambda x: d(x, advantage, progress).sum())(log_ratio),
    )
    values, slopes = jax.jit(jax.vmap(value_and_slope))(stacked(found.values()))
    for text, value, slope in zip(found, values, slopes, strict=True):
        wanted_value, wanted_slope = jax.jit(value_and_slope)(lo.Program.parse(text))
        np.testing.assert_allclose(value, wanted_value, rtol=1e-4, atol=1e-5, err_msg=text)
        large = 1e-4 * float(jnp.abs(wanted_slope).max())  # where terms nearly cancel, their rounding is left
        np.testing.assert_allclose(slope, wanted_slope, rtol=1e-3, atol=1e-5 + large, err_msg=text)


def test_it_equals_the_drifts_it_writes(samples):
    for text, drift in ((DPO, lo.DPO()), (CLIP, lo.Clip(0.2))):
        program = lo.InterpretedProgram.of(text)
        np.testing.assert_allclose(program(*samples), drift(*samples), rtol=2e-5, atol=2e-7)
        lo.verify_drift(program)


def test_all_derivatives_are_those_of_the_program(samples, progress):
    log_ratio, advantage = samples
    text = "t * tanh(A * log_r) * 0.3 + 2 * square(r1) / (1 + abs(A))"
    one, other = lo.InterpretedProgram.of(text, constants=3), lo.Program.parse(text)

    def total(d, constants, x, a, n):
        moment = lo.Progress(n, progress.lifetime)
        return (d.replace(constants=constants)(x, a, moment) * jnp.sin(x)).sum()

    for argument in range(4):
        found, wanted = (
            jax.grad(total, argnums=argument + 1)(d, d.constants, log_ratio, advantage, progress.step)
            for d in (one, other)
        )
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("text", EXTREMES)
def test_values_and_slopes_are_finite_at_finite_inputs(text):
    program = lo.InterpretedProgram.of(text)
    some = jnp.array([0.0, -0.0, 1e-30, -1e-30, 1e-6, 0.3, -0.3, 20.0, -20.0, 100.0, 1e30, -1e30, 3e38], jnp.float32)
    log_ratio, advantage = (x.ravel() for x in jnp.meshgrid(some, some))
    assert np.isfinite(program(log_ratio, advantage)).all()
    assert np.isfinite(jax.grad(lambda x: (program(x, advantage) / x.size).sum())(log_ratio)).all()


def test_text_to_arrays_and_back():
    found = dict(readable(random_texts(500, seed=5)))
    assert len(found) > 200
    for text, program in found.items():
        assert program.program() == lo.Program.parse(text)
        assert str(program) == str(lo.Program.parse(text))


def test_equal_parts_are_computed_once():
    arrays = assemble(*parse("A * r1 + tanh(A * r1)"), length=4, count=0)
    assert [NAMES[int(code)] for code in arrays.opcodes] == ["*", "tanh", "+", "copy"]
    np.testing.assert_array_equal(arrays.arguments[:, 0], [2, 5, 5, 7])  # registers 0 to 4 are the variables


@pytest.mark.parametrize(
    ("text", "sizes", "sentence"),
    [
        (DPO, {"length": 8}, "a program must have at most 8 different operations here, and this one has 14"),
        (DPO, {"constants": 2}, "a program must have at most 2 constants here, and this one has 5"),
        ("t * A", {"timed": False}, r"must read neither t nor log_N here, and this one does: t \* A"),
    ],
)
def test_a_program_that_does_not_fit_is_refused(text, sizes, sentence):
    with pytest.raises(lo.ProgramError, match=sentence):
        lo.InterpretedProgram.of(text, **sizes)


def test_a_file_gives_the_same_program(tmp_path, samples):
    program = lo.InterpretedProgram.of(DPO)
    lo.save(lo.Mirror(drift=program), tmp_path / "p.safetensors")
    found = lo.load(tmp_path / "p.safetensors").drift
    assert str(found) == DPO
    np.testing.assert_array_equal(found(*samples), program(*samples))


GOOD = lo.InterpretedProgram.of("A * r1", length=2, constants=1)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"opcodes": jnp.array([99.0, 0.0])}, r"an operation code must be one of 0 to 16, and that of 0 is 99\."),
        ({"opcodes": jnp.array([0.5, 0.0])}, "that of 0 is 0.5"),
        ({"opcodes": jnp.array([jnp.nan, 0.0])}, "that of 0 is nan"),
        ({"arguments": jnp.full((2, 3), 7.0)}, r"an argument of operation 0 must be one of 0 to 5, and is 7\."),
        ({"arguments": jnp.zeros((3, 3))}, r"must have arrays of shapes \[L\], \[L, 3\] and \[K\]"),
        (
            {"opcodes": jnp.zeros(0), "arguments": jnp.zeros((0, 3))},
            r"must have arrays of shapes \[L\], \[L, 3\] and \[K\]",
        ),
        (
            {"opcodes": jnp.array([1.0, 3.0]), "arguments": jnp.array([[2.0, 2, 0], [6, 2, 0]])},
            "expected a number on the left",
        ),
        ({"arguments": jnp.array([[3.0, 3, 0], [6, 0, 0]])}, "reads the time and is not timed"),
    ],
)
def test_a_file_made_by_hand_is_refused_in_a_sentence(changes, sentence, tmp_path):
    lo.save(GOOD.replace(**changes), tmp_path / "p.safetensors")
    with pytest.raises(lo.ObjectiveFileError, match=sentence):
        lo.load(tmp_path / "p.safetensors")


def test_arrays_that_would_grow_without_bound_are_refused():
    """Each instruction doubles the one before it: 2^40 nodes as a text."""
    arguments = np.zeros((40, 3))
    arguments[:, :2] = np.maximum(np.arange(40) + 4, 2)[:, None]
    with pytest.raises(lo.ProgramError, match="at most 200"):
        disassemble(Arrays(np.full(40, NAMES.index("+")), arguments, np.zeros(0)))


def test_time_is_asked_for(samples):
    with pytest.raises(ValueError, match=r"a timed InterpretedProgram .* was called without its progress"):
        lo.InterpretedProgram.of("t * A")(*samples)
