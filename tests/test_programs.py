"""Programs: the language, its limits, its values, and its files."""

import json
import random
import time
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import learned_objectives as lo
from learned_objectives.expressions import CALLS, INFIX, VARIABLES
from learned_objectives.parsing import LONGEST, NESTING, NODES

DPO = "where(A < 0, relu(log_r * A - 0.6 * tanh(log_r * A / 0.6)), relu(r1 * A - 2 * tanh(r1 * A / 2)))"
CLIP = "relu((r1 - max(min(r1, 0.2), -0.2)) * A)"
KL = "relu((r1 + 1) * log_r - r1) / max(1 - t, 0.001)"
EQUALS = {"dpo": (DPO, lo.DPO()), "clip": (CLIP, lo.Clip(0.2)), "kl": (KL, lo.KL())}


@pytest.fixture(params=EQUALS.values(), ids=EQUALS.keys())
def pair(request):
    text, drift = request.param
    return lo.Program.parse(text), drift


def test_a_program_equals_the_drift_it_writes(pair, samples, progress):
    program, drift = pair
    log_ratio, advantage = samples
    np.testing.assert_allclose(
        program(log_ratio, advantage, progress), drift(log_ratio, advantage, progress), rtol=2e-5, atol=2e-7
    )
    slope = lambda d: jax.grad(lambda x: d(x, advantage, progress).sum())(log_ratio)
    np.testing.assert_allclose(slope(program), slope(drift), rtol=2e-5, atol=1e-6)


def test_such_a_program_is_a_drift(pair):
    lo.verify_drift(pair[0])


def test_a_program_that_is_no_drift_is_refused():
    with pytest.raises(lo.DriftLawError, match="must be non-negative"):
        lo.verify_drift(lo.Program.parse("r1 * A"))


def test_a_surrogate_is_maximised_as_written(samples):
    log_ratio, advantage = samples
    written = lo.SurrogateProgram.parse("min((r1 + 1) * A, (max(min(r1, 0.2), -0.2) + 1) * A)")
    for of in (lambda d: d.surrogate(log_ratio, advantage), lambda d: d(log_ratio, advantage)):
        np.testing.assert_allclose(of(written), of(lo.Clip(0.2)), rtol=1e-5, atol=1e-6)
    slope = lambda d: jax.grad(lambda x: d.surrogate(x, advantage).sum())(log_ratio)
    np.testing.assert_allclose(slope(written), slope(lo.Clip(0.2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        lo.Mirror(drift=written).surrogate(log_ratio, advantage), written.surrogate(log_ratio, advantage)
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 + 2 * 3", 7.0),
        ("(1 + 2) * 3", 9.0),
        ("8 - 4 - 2", 2.0),
        ("8 - (4 - 2)", 6.0),
        ("8 / 4 / 2", 1.0),
        ("-2 * -3", 6.0),
        ("--A", 2.0),
        ("-(A + 1)", -3.0),
        ("A * -1.5e0", -3.0),
        ("square(A) - abs(-A)", 2.0),
        ("max(A, 3) - min(A, .5)", 2.5),
        ("where((r1 > 0), A, 1 / A)", 2.0),
        ("where(log_r < -1, A, 1 / A)", 0.5),
        ("exp(log(A))", 2.0),
        ("relu(-A) + relu(A)", 2.0),
        ("r1", 0.5),
        ("t", 0.25),
        ("log_N", 0.5),
        ("1 / 0", 1e6),
        ("0 / 0", 0.0),
        ("A / -1e-9", -2e6),
        ("log(-1)", np.log(1e-6)),
    ],
)
def test_values_by_hand(text, expected):
    """At r = 1.5, A = 2, n/N = 0.25 and N = 1e6."""
    moment = lo.Progress(jnp.float32(0.25e6), jnp.float32(1e6))
    found = lo.Program.parse(text)(jnp.log(jnp.float32(1.5)), jnp.float32(2.0), moment)
    assert found.shape == ()
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_progress_is_needed_by_those_that_read_the_time(samples):
    assert not lo.Program.parse(DPO).needs_progress
    for text in ("t * A", "log_N"):
        assert lo.Program.parse(text).needs_progress
        with pytest.raises(ValueError, match=r"the Program .* was called without its progress"):
            lo.Program.parse(text)(*samples)


def test_a_constant_is_a_leaf(samples):
    program = lo.Program.parse(DPO)
    assert [x.shape for x in jax.tree.leaves(program)] == [(5,)]
    moved = program.replace(constants=jnp.array([0.0, 0.7, 0.7, 3.0, 3.0]))
    np.testing.assert_allclose(moved(*samples), lo.DPO(3.0, 0.7)(*samples), rtol=2e-5, atol=2e-7)
    assert str(moved) == DPO.replace("0.6", "0.7").replace("2", "3")


@pytest.mark.parametrize(
    ("text", "shortest"),
    [
        ("((A))", "A"),
        ("(A * t) + r1", "A * t + r1"),
        ("A * (t + r1)", "A * (t + r1)"),
        ("(A - t) - r1", "A - t - r1"),
        ("A - (t - r1)", "A - (t - r1)"),
        ("-(A * t)", "-(A * t)"),
        ("(-A) * t", "-A * t"),
        ("-(0.50)", "-0.5"),
        ("2e3*A", "2000 * A"),
        ("1e-7", "1e-07"),
        ("where((A)<(0),1,2)", "where(A < 0, 1, 2)"),
    ],
)
def test_a_text_has_the_fewest_parentheses(text, shortest):
    assert str(lo.Program.parse(text)) == shortest


def some_text(rng, depth):
    """A random number of the language, with needless parentheses and spaces."""
    one = lambda: some_text(rng, depth - 1)
    kind = rng.randrange(6) if depth else rng.randrange(2)
    if kind == 0:
        return rng.choice(VARIABLES)
    if kind == 1:
        return rng.choice(["2", "0.1", "-3", "1e-3", "7.25", str(rng.uniform(-9, 9)), str(10 ** rng.uniform(-40, 6))])
    if kind == 2:
        return f"({one()})"
    if kind == 3:
        return f"({one()}{rng.choice('+-*/')} {one()})"
    if kind == 4:
        return f"- {one()} {rng.choice('+-*/')}{one()}"
    name = rng.choice([*CALLS])
    first = f"{one()} {rng.choice('<>')} {one()}" if name == "where" else one()
    return f"{name}({', '.join([first, *(one() for _ in CALLS[name].takes[1:])])})"


def random_texts(count, seed):
    rng = random.Random(seed)
    return [some_text(rng, rng.randrange(5)) for _ in range(count)]


def test_print_then_parse_is_the_same_program():
    read = 0
    for text in random_texts(1000, seed=0):
        try:
            program = lo.Program.parse(text)
        except lo.ProgramError:  # too many nodes
            continue
        again = lo.Program.parse(str(program))
        assert again == program
        assert str(again) == str(program)
        assert len(str(program)) <= max(len(text) * 2, 16)
        read += 1
    assert read > 900


def test_python_gives_the_same_value_as_the_printed_text():
    """The operators bind as those of Python do: texts of them alone, evaluated by NumPy."""
    rng = random.Random(1)
    for number in range(200):
        text = f"A {rng.choice('+-*')} " + f" {rng.choice('+-*')} ".join(
            rng.choice(["(A - 2)", "-A", "r1", "3", "(A * (r1 + 1))", "-(r1 - A)"]) for _ in range(4)
        )
        program = lo.Program.parse(text)
        names = {"A": np.float64(1.7), "r1": np.float64(0.3)}
        wanted = eval(str(program), {"__builtins__": {}}, names)
        assert wanted == pytest.approx(eval(text, {"__builtins__": {}}, names))
        if number < 20:  # each compiles
            found = program(jnp.log(jnp.float32(1.3)), jnp.float32(1.7))
            assert float(found) == pytest.approx(float(wanted), rel=1e-4, abs=1e-4)


def certain_texts():
    """Texts that are no programs."""
    for n in (33, 100, 1900):
        yield from ("(" * n + "A" + ")" * n, "-" * n + "A", "tanh(" * n + "A" + ")" * n, "(" * n)
        yield "min(A, " * n + "A" + ")" * n
        yield "A*" * n + "("
    for n in (10**5, 10**7):
        yield from ("A" * n, "(" * n, "9" * n, " " * n, "\0" * n, "-" * n, "é" * n)
    yield from (
        "+".join(["A"] * (NODES // 2 + 1)),
        "9" * LONGEST,
        "1e" + "9" * 3000,
        "1e999",
        "1e6000000",
        "1000001",
        "-1e7",
    )
    yield from (
        "",
        " ",
        "\n",
        "\0",
        "A\0",
        "\x1b[31mA",
        "A\u200b",
        "２",
        "Α",
        "A×2",
        "r₁",
        "🙂",
        "ﬀ",
        "\ud800",
        "A\u202e",
    )
    yield from (
        "__import__('os').system('true')",
        "lambda: A",
        "A if A else A",
        "[A]",
        "{A}",
        "A.real",
        "A[0]",
        "eval(A)",
    )
    yield from (
        "A == 1",
        "A <= 1",
        "A ** 2",
        "A // 2",
        "A % 2",
        "not A",
        "A and A",
        "A; A",
        "A # 2",
        "'A'",
        "1_000",
        "0x10",
    )
    yield from ("nan", "inf", "1j", "1.2.3", "1e", "1 2", "A A", "2A", "A(2)", "tanh", "tanh()", "tanh(A, A)", "tanh A")
    yield from (
        "A < 1",
        "where(A, 1, 2)",
        "where(A < 1, A < 1, 2)",
        "where(A < 1, 2)",
        "1 < A < 2",
        "-(A < 1)",
        "A + (A < 1)",
    )
    yield from (
        "#",
        "# + A",
        "minus(A)",
        "a",
        "R1",
        "log_r()",
        "relu",
        "sin(A)",
        "(A",
        "A)",
        "A +",
        "* A",
        ",",
        "min(A)",
    )


def hostile_texts():
    """Texts of which more than 1,000 are no programs."""
    yield from certain_texts()
    rng = random.Random(2)
    pieces = [*VARIABLES, *CALLS, *INFIX, *"()#.,;:!&|^~@$`\\\"'_\0é", "1e9", "exec", "0", "2.5", " "]
    for _ in range(5000):
        yield "".join(rng.choice(pieces) for _ in range(rng.randrange(1, 60))) + rng.choice(
            ["", "", "(", "+", "\0", " import os"]
        )


def refusal(text):
    """Why a text is no program; None where it is one."""
    try:
        lo.Program.parse(text)
    except lo.ProgramError as error:
        return str(error)


def test_a_thousand_hostile_texts_are_refused_in_a_sentence_quickly_and_with_flat_memory():
    refused, slowest = 0, 0.0
    tracemalloc.start()
    for text in hostile_texts():
        tracemalloc.reset_peak()
        before, began = tracemalloc.get_traced_memory()[0], time.perf_counter()
        message = refusal(text)
        if message is None:
            assert len(text) < 400
            continue
        assert message.isascii()
        assert message.isprintable()
        assert message.endswith(".")
        assert 20 < len(message) < 300
        refused += 1
        slowest = max(slowest, time.perf_counter() - began)
        assert tracemalloc.get_traced_memory()[1] - before < 5e6
    tracemalloc.stop()
    assert refused >= 1000
    assert slowest < 1.0


def test_hostile_texts_that_must_be_refused_are():
    """Of the texts above all but the random ones."""
    assert [text[:50] for text in certain_texts() if refusal(text) is None] == []


@pytest.mark.parametrize("value", [None, 2, 2.0, b"A", ["A"], object(), jnp.ones(2)])
def test_what_is_no_text_is_refused(value):
    with pytest.raises(lo.ProgramError, match="a program must be a text, and is of type"):
        lo.Program.parse(value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("relu(r1 * )", r"expected a number, a variable or a function, and found '\)' at character 11\."),
        ("relu(r1", r"expected '\)', and found the end of the text\."),
        ("min(A)", r"expected ',', and found '\)' at character 6\."),
        (
            "sin(A)",
            r"expected a variable \(log_r, r1, A, t, log_N\) or a function .*, and found 'sin' at character 1\.",
        ),
        (
            "A < 1",
            "expected a number as the value of a program, and found a condition, which begins with 'A' at character 1",
        ),
        ("where(A, 1, 2)", "expected a condition as argument 1 of 'where' at character 1, and found a number"),
        ("1 + (A < 2)", r"expected a number on the right of '\+' at character 3, and found a condition"),
        ("A ? 2", r"found '\?' at character 3\."),
        ("2000000", r"a constant must have a size of at most 1e\+06, and one is '2000000' at character 1\."),
        ("A " * 3000, "a program must have at most 4000 characters, and this one has 6000"),
        ("+".join(["A"] * 101), "a program must have at most 200 variables, constants and operations"),
        ("(" * 40, "a program must have at most 32 levels of nesting"),
    ],
)
def test_a_refusal_says_what_was_expected_what_was_found_and_where(text, sentence):
    with pytest.raises(lo.ProgramError, match=sentence):
        lo.Program.parse(text)


def test_the_largest_programs_are_read():
    lo.Program.parse("+".join(["A"] * (NODES // 2)))
    lo.Program.parse("(" * NESTING + "A" + ")" * NESTING)
    parts = ["-1.1754944e-38"] * (NODES // 2)
    while len(parts) > 1:  # in pairs
        parts = [f"min({', '.join(parts[i : i + 2])})" if parts[i + 1 :] else parts[i] for i in range(0, len(parts), 2)]
    longest = lo.Program.parse(parts[0])
    assert 2000 < len(str(longest)) < LONGEST
    assert lo.Program.parse(str(longest)) == longest


STEEP = "tanh(1e6 * tanh(1e6 * tanh(1e6 * tanh(1e6 * tanh(1e6 * tanh(1e6 * tanh(1e6 * tanh(1e6 * r1 * A))))))))"
EXTREMES = (
    *(
        STEEP,
        "1 / square(square(square(r1)))",
        "exp(exp(exp(log_r * A)))",
        "log(r1) / log(-A)",
        "A / (r1 - r1)",
        "square(A) / A",
    ),
    *("1 / (1 / (1 / (1 / A)))", "exp(1e6 * A) - exp(1e6 * A)", "log(0 * A) * log_r", "where(A < 0, 1 / A, log(A))"),
)


@pytest.mark.parametrize("text", [*EXTREMES, *random_texts(30, seed=3)])
def test_values_and_derivatives_are_finite_at_finite_inputs(text):
    program = lo.Program.parse(text)
    some = jnp.array([0.0, -0.0, 1e-30, -1e-30, 1e-6, 0.3, -0.3, 20.0, -20.0, 100.0, 1e30, -1e30, 3e38], jnp.float32)
    log_ratio, advantage = (x.ravel() for x in jnp.meshgrid(some, some))
    moment = lo.Progress(jnp.float32(0.0), jnp.float32(1e10))

    def total(constants, x, a):
        return (program.replace(constants=constants)(x, a, moment) / x.size).sum()

    value = program(log_ratio, advantage, moment)
    assert np.isfinite(value).all()
    for slope in jax.jit(jax.grad(total, argnums=(0, 1, 2)))(program.constants, log_ratio, advantage):
        assert np.isfinite(slope).all()


@pytest.mark.parametrize("kind", [lo.Program, lo.SurrogateProgram])
def test_a_file_gives_the_same_program(kind, tmp_path):
    for text in (DPO, "A", "t * 0.1"):
        program = kind.parse(text)
        lo.save(lo.Mirror(drift=program), tmp_path / "p.safetensors")
        found = lo.load(tmp_path / "p.safetensors").drift
        assert found == program
        assert str(found) == text


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        (
            lo.Program("A + # * r1", jnp.zeros(3)),
            r"must have constants of shape \(1,\), one for each '#' .*, and has \(3,\)",
        ),
        (lo.Program("A +", jnp.zeros(0)), "expected '#', a variable or a function, and found the end of the text"),
        (lo.Program("(A)", jnp.zeros(0)), r"a structure must be written as 'A', and is '\(A\)'"),
        (lo.Program("A + 2", jnp.zeros(0)), "expected '#', a variable or a function, and found '2' at character 5"),
        (lo.Program(5, jnp.zeros(0)), "a program must be a text, and is of type int"),
        (lo.Program(["A"], jnp.zeros(0)), "a program must be a text, and is of type list"),
        (lo.Program("A" * 10**5, jnp.zeros(0)), "a program must have at most 4000 characters"),
    ],
)
def test_a_file_made_by_hand_is_refused_in_a_sentence(program, sentence, tmp_path):
    lo.save(program, tmp_path / "p.safetensors")
    with pytest.raises(lo.ObjectiveFileError, match=sentence):
        lo.load(tmp_path / "p.safetensors")


def test_a_population_of_constants_is_one_program(samples):
    program = lo.Program.parse(CLIP)
    population = program.replace(constants=jnp.array([[0.1, -0.1], [0.3, -0.3]]))
    assert str(population) == program.structure
    together = jax.vmap(lambda p: p(*samples))(population)
    for found, epsilon in zip(together, (0.1, 0.3), strict=True):
        np.testing.assert_allclose(found, lo.Clip(epsilon)(*samples), rtol=1e-5, atol=1e-6)


def test_the_second_call_does_not_compile(samples):
    calls = []

    @jax.jit
    def value(program):
        calls.append(program)
        return program(*samples)

    value(lo.Program.parse(CLIP))
    value(lo.Program.parse(CLIP.replace("0.2", "0.3")))
    assert len(calls) == 1


def test_a_record_of_a_program_is_readable(tmp_path):
    lo.save(lo.Program.parse(CLIP), tmp_path / "p.safetensors")
    data = (tmp_path / "p.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    static = json.loads(header["objective"])["static"]
    assert static == {"structure": "relu((r1 - max(min(r1, #), #)) * A)"}


@pytest.mark.parametrize("kind", [lo.Program, lo.SurrogateProgram, lo.InterpretedProgram])
def test_constants_that_a_search_moved_beyond_the_largest_survive_text_and_file(kind, samples, tmp_path):
    make = lo.InterpretedProgram.of if kind is lo.InterpretedProgram else kind.parse
    moved = make("where(A < 2, 3 * r1, 0.5 * r1)")
    constants = jnp.asarray(moved.constants).at[jnp.array([0, 1])].set(jnp.array([-1e7, 3e9]))
    moved = moved.replace(constants=constants)
    text = "where(A < -1000000, 1000000 * r1, 0.5 * r1)"
    assert str(moved) == text
    np.testing.assert_array_equal(moved(*samples), make(text)(*samples))
    lo.save(lo.Mirror(drift=moved), tmp_path / "it.safetensors")
    again = lo.load(tmp_path / "it.safetensors").drift
    assert str(again) == text
    np.testing.assert_array_equal(again(*samples), moved(*samples))


@pytest.mark.parametrize("kind", [lo.Program, lo.InterpretedProgram])
def test_constants_that_are_not_finite_are_refused(kind, tmp_path):
    made = lo.InterpretedProgram.of("2 * A") if kind is lo.InterpretedProgram else kind.parse("2 * A")
    path = tmp_path / "it.safetensors"
    lo.save(lo.Mirror(drift=made.replace(constants=jnp.asarray(made.constants).at[0].set(jnp.nan))), path)
    with pytest.raises(lo.ObjectiveFileError, match="must be finite"):
        lo.load(path)
