"""Inputs with random errors: weight files mutated a thousand times, command lines made wrong field by field."""

import contextlib
import dataclasses
import json
import pickle
import random
import resource
import sys
import types
import typing

import crash
import jax
import numpy as np
import pytest
import tyro

import learned_objectives as lo
from discover import cli
from discover.runs.store import RunError, open_run
from discover.searches.recipe import Recipe, recipe_in
from learned_objectives import library

SHIPPED = ("lpg", "ta_lpg", "lpo of ours")
MUTANTS = 1000


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Whole files by name: bytes."""
    own = tmp_path_factory.mktemp("whole") / "own.safetensors"
    lo.save(
        lo.Mirror(drift=lo.LPO.create(jax.random.key(0), width=8, time_aware=True)),
        own,
        {"made_by": "a test", "steps": [1, 2]},
    )
    paths = {name: library.WEIGHTS / f"{name}.safetensors" for name in SHIPPED[:2]} | {SHIPPED[2]: own}
    return {name: path.read_bytes() for name, path in paths.items()}


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory):
    """What is in them: (objective, record)."""
    path = tmp_path_factory.mktemp("read") / "whole.safetensors"
    found = {}
    for name, data in files.items():
        path.write_bytes(data)
        found[name] = lo.load(path), lo.record(path)
    return found


def parts(data):
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def joined(header, body):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def truncated(chance, data):
    return data[: chance.randrange(len(data))]


def lengthened(chance, data):
    return data + chance.randbytes(chance.randint(1, 4096))


def flipped(chance, data):
    data = bytearray(data)
    end = 8 + int.from_bytes(data[:8], "little")
    for _ in range(chance.choice((1, 1, 8))):
        where = chance.randrange(len(data)) if chance.random() < 0.5 else chance.randrange(end)
        data[where] ^= 1 << chance.randrange(8)
    return bytes(data)


def spliced(chance, data):
    at, length = chance.randrange(len(data)), chance.randint(1, 64)
    return data[:at] + chance.randbytes(length) + data[at + chance.choice((0, length)) :]


ABSURD = (
    -1,
    0,
    1,
    2**31,
    2**40,
    2**63,
    1e308,
    0.5,
    True,
    None,
    "",
    "x",
    "F16",
    "I64",
    [],
    [0],
    [2**40, 2**40],
    {},
    [[[[1]]]],
)


def retyped(chance, data):
    """A tensor's type, shape or place."""
    header, body = parts(data)
    tensor = header[chance.choice([name for name in header if name != "__metadata__"])]
    tensor[chance.choice(list(tensor))] = chance.choice(ABSURD)
    return joined(header, body)


def renamed(chance, data):
    """A tensor, or an entry of the metadata."""
    header, body = parts(data)
    among = chance.choice((header, header["__metadata__"]))
    name = chance.choice(list(among))
    among[chance.choice((name + "x", "", "objective", "drift.out"))] = among.pop(name)
    return joined(header, body)


def restated(chance, data):
    """Another description of the objective, or another record, and a checksum that fits: as a user might write on purpose."""
    header, body = parts(data)
    metadata = header["__metadata__"]
    spec = json.loads(metadata["objective"])
    node = spec
    while node["children"] and chance.random() < 0.7:
        node = node["children"][chance.choice(list(node["children"]))]
    what = chance.choice(["type", "static", "children", "one static", "one static", "one static"])
    if what == "one static" and node["static"]:
        node["static"][chance.choice(list(node["static"]))] = chance.choice(ABSURD)
    elif what == "type":
        node["type"] = chance.choice(("LPO", "LPG", "Mirror", "Clip", "os.system", "", 7, None))
    else:
        node["static" if what == "one static" else what] = chance.choice(ABSURD)
    if chance.random() < 0.2:
        metadata["record"] = json.dumps(chance.choice((*ABSURD, {"seed": 3})))
    tensors = {
        name: np.frombuffer(body[slice(*x["data_offsets"])], np.float32).reshape(x["shape"])
        for name, x in header.items()
        if name != "__metadata__"
    }
    metadata |= {"objective": json.dumps(spec), "sha256": library._digest(tensors, spec, metadata["record"])}
    return joined(header, body)


def pickled(chance, data):
    return pickle.dumps({"objective": chance.choice([print, len, data[:100]])}, chance.randint(0, 5))


MUTATIONS = (truncated, lengthened, flipped, spliced, retyped, renamed, restated, pickled)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.__name__)
def test_a_mutated_file_loads_as_it_was_or_is_refused_with_a_sentence(mutation, files, whole, tmp_path):
    path = tmp_path / "mutant.safetensors"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(MUTANTS // len(MUTATIONS)):
        chance = random.Random(i)
        name = chance.choice(SHIPPED)
        path.write_bytes(mutation(chance, files[name]))
        loaded, how, sentence = read(path)
        assert loaded is not None or len(sentence.splitlines()) == 1, i
        if loaded is not None and mutation is not restated:  # which says what it is, and is another
            before_it, its_record = whole[name]
            assert same(loaded, before_it), i
            assert how == its_record, i
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert grown < 300e6


def read(path):
    """(the objective, its record, "") or (None, None, the refusal)."""
    try:
        how = lo.record(path)
        assert isinstance(how, dict)
        return lo.load(path), how, ""
    except lo.ObjectiveFileError as error:
        return None, None, str(error)


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def changed(chance, data):
    """One bit."""
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]


def nested(chance, data):
    return chance.choice((b"[", b'{"agent":')) * 100_000


def test_a_mutated_recipe_is_refused_with_a_sentence_or_is_the_same(tmp_path):
    path = tmp_path / "recipe.json"
    with open_run(tmp_path, crash.recipe()):
        data = path.read_bytes()
    for i in range(200):
        chance = random.Random(i)
        path.write_bytes(chance.choice((truncated, lengthened, spliced, changed, changed, nested))(chance, data))
        with contextlib.suppress(ValueError):
            assert isinstance(recipe_in(tmp_path), Recipe)
        sentence = "The same."
        try:
            with open_run(tmp_path, crash.recipe()):
                assert path.read_bytes() == data, i
        except RunError as error:
            sentence = str(error)
        assert len(sentence.splitlines()) == 1, i


STARTS = {
    "train": "train --out out",
    "meta-train": "meta-train lpo_minatar --out out",
    "evaluate": "evaluate ppo --envs CartPole-v1 --out out",
    "quickstart": "quickstart --out out",
    "plot": "plot run --out out",
}
ABSURD_NUMBERS = {int: (str(10**30),), float: ("nan", "1e39", "-inf")}
WRONG = {int: ("x", "1.5", "1e400"), float: ("x", "1,5"), bool: ()}


def fields_of(cls, prefix=""):
    """(flag, type) of every field, nested ones included, that has a flag."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if hasattr(kind, "of_kind"):  # one of several classes: that of the default
            kind = type(field.default_factory())
        nameless = typing.get_origin(kind) is typing.Annotated
        if nameless:
            kind, *marks = typing.get_args(kind)
            if any(mark in marks for mark in (tyro.conf.Positional,)):
                continue
        name = prefix if nameless and dataclasses.is_dataclass(kind) else f"{prefix}{field.name}"
        if dataclasses.is_dataclass(kind):
            yield from fields_of(kind, f"{name}." if name and not nameless else prefix)
        else:
            yield f"--{name.replace('_', '-')}", kind


def wrong_words(kind):
    """Words that no value of a type is written with."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return ("zzz",)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if str in arguments or any(getattr(a, "__name__", "") == "Path" for a in arguments):
            return ()
        return tuple(dict.fromkeys(word for a in arguments if a is not type(None) for word in wrong_words(a)))
    if typing.get_origin(kind) is tuple:
        return wrong_words(arguments[0])
    return WRONG.get(kind, ())


def numbers_in(kind):
    """The types of numbers that a value may be made of."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType, tuple):
        return {number for a in arguments for number in numbers_in(a)}
    return {kind} & {int, float}


def absurd_lines():
    """Well-formed, and beyond what anything can be made of."""
    for command, start in STARTS.items():
        for flag, kind in fields_of(cli.COMMANDS[command][0]):
            if flag not in ("--num-processes", "--process-id"):  # read before the parser: see test_processes
                yield from (f"{start} {flag} {word}" for number in numbers_in(kind) for word in ABSURD_NUMBERS[number])


def wrong_lines():
    for command, start in STARTS.items():
        for flag, kind in fields_of(cli.COMMANDS[command][0]):
            for word in wrong_words(kind):
                yield f"{start} {flag} {word}"
            if wrong_words(kind) and kind is not bool:
                yield f"{start} {flag}"  # without a value
            yield f"{start} {flag}zz 1"


LINES = [*wrong_lines(), *absurd_lines()][:: 1 if crash.LONG else 4]  # all of them take two minutes


def test_there_are_enough_of_them():
    assert len(LINES) >= 120


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_a_wrong_line_is_one_sentence_and_touches_nothing(part, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for line in LINES[part::4]:
        status = cli.main(line.split())
        said, sentence = capsys.readouterr()
        assert status == 2, line
        assert sentence.startswith("discover: "), line
        assert len(sentence.splitlines()) == 1, (line, sentence)
        assert "Traceback" not in said + sentence
        assert not list(tmp_path.iterdir()), line
