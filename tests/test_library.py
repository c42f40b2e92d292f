"""Objectives survive the disk exactly, and nothing else is let in."""

import ast
import importlib
import inspect
import json
import linecache
import os
import pickle
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import learned_objectives as lo
from learned_objectives import library

pytestmark = pytest.mark.usefixtures("strict")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "objective.safetensors"


def contents(path):
    """Metadata and tensors: safetensors writes the former in any order."""
    with safetensors.safe_open(path, framework="np") as file:
        tensors = {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118
        return file.metadata(), tensors


def test_what_is_loaded_computes_the_same_bits(drift, path, samples, progress):
    saved = lo.Mirror(drift, gamma=0.97, value_clip=0.2)
    lo.save(saved, path)
    loaded = lo.load(path)
    np.testing.assert_array_equal(loaded.surrogate(*samples, progress), saved.surrogate(*samples, progress))


def test_what_is_loaded_has_the_same_structure(drift, path):
    saved = lo.Mirror(drift, gamma=0.97, gae_lambda=0.9, entropy_coef=0.0, value_clip=0.2)
    lo.save(saved, path)
    loaded = lo.load(path)
    assert jax.tree.structure(loaded) == jax.tree.structure(saved)
    assert type(loaded.gamma) is float  # an array would equal it, and could not be static to jit
    assert jax.tree.map(jnp.shape, loaded) == jax.tree.map(jnp.shape, saved)


def test_a_drift_alone_can_be_saved(drift, path, samples, progress):
    lo.save(drift, str(path))
    loaded = lo.load(str(path))
    assert type(loaded) is type(drift)
    np.testing.assert_array_equal(loaded(*samples, progress), drift(*samples, progress))


def test_saving_what_was_loaded_changes_nothing(drift, tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    lo.save(lo.Mirror(drift), first, record={"seed": 3})
    lo.save(lo.load(first), second, record=lo.record(first))
    assert contents(second) == contents(first)


def test_the_record_comes_back(path):
    how = {"env": "Breakout-MinAtar", "seed": 3, "fitness": [0.5, None], "π": {"nested": True}}
    lo.save(lo.Mirror(), path, record=how)
    assert lo.record(path) == how


def test_without_a_record_there_is_an_empty_one(path):
    lo.save(lo.Mirror(), path)
    assert lo.record(path) == {}


@pytest.mark.parametrize(("name", "drift"), [("a2c", lo.NoDrift), ("dpo", lo.DPO), ("mdpo", lo.KL), ("ppo", lo.Clip)])
def test_closed_forms(name, drift):
    assert isinstance(lo.load(name), lo.Mirror)
    assert isinstance(lo.load(name).drift, drift)


def test_whatever_is_available_loads_in_order():
    assert list(lo.available()) == sorted(lo.available())
    assert {"a2c", "dpo", "mdpo", "ppo"} <= set(lo.available())
    for name in lo.available():
        assert lo.load(name).critic_width >= 1


@pytest.mark.parametrize(("name", "nearest"), [("dp0", "dpo"), ("mpdo", "mdpo")])
def test_an_unknown_name_gets_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=rf"Unknown .* '{name}'; did you mean '{nearest}'\?"):
        lo.load(name)


def test_a_name_like_no_other_gets_the_list():
    with pytest.raises(ValueError, match=r"'xyzzy'; known are a2c, .*or the path of a \.safetens"):
        lo.load("xyzzy")


def refuse(path, reason):
    """Neither `load` nor `record` takes the file, and both say why in one sentence."""
    for read in (lo.load, lo.record):
        with pytest.raises(lo.ObjectiveFileError, match=reason) as error:
            read(path)
        sentence = str(error.value)
        assert str(path) in sentence
        assert sentence.endswith(".")
        assert "\n" not in sentence
        assert "Traceback" not in sentence


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, 300, -4, -1])
def test_a_truncated_file_is_refused(path, length):
    lo.save(lo.load("dpo"), path)
    path.write_bytes(path.read_bytes()[:length])
    refuse(path, "is not a complete safetensors file")


def test_a_longer_file_is_refused(path):
    lo.save(lo.load("dpo"), path)
    path.write_bytes(path.read_bytes() + b"\0\0\0\0")
    refuse(path, "is not a complete safetensors file")


@pytest.mark.parametrize("place", [-1, -300, -4000])
def test_one_flipped_bit_in_a_tensor_is_refused(path, place):
    lo.save(lo.Mirror(lo.LPO.create(jax.random.key(0))), path)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    refuse(path, "contents do not match its checksum")


def test_no_flipped_bit_anywhere_changes_an_objective_unnoticed(path):
    lo.save(lo.load("dpo"), path, record={})
    data = path.read_bytes()
    for i in range(len(data)):
        path.write_bytes(data[:i] + bytes([data[i] ^ (1 << i % 7)]) + data[i + 1 :])
        try:
            loaded = lo.load(path)
        except lo.ObjectiveFileError:
            continue
        assert loaded == lo.load("dpo"), i


def test_no_flipped_bit_anywhere_changes_a_record_unnoticed(path):
    how = {"seed": 5, "returns": [0.5]}
    lo.save(lo.load("dpo"), path, record=how)
    data = path.read_bytes()
    for i in range(data.index(b'"record"'), data.index(b'"schema"')):
        for bit in range(8):
            path.write_bytes(data[:i] + bytes([data[i] ^ (1 << bit)]) + data[i + 1 :])
            try:
                found = lo.record(path)
            except lo.ObjectiveFileError:
                continue
            assert found == how, (i, bit)


def test_a_file_from_before_records_were_checked_is_read(path):
    lo.save(lo.load("dpo"), path, record={"seed": 5})
    with safetensors.safe_open(path, framework="np") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    rewrite(path, schema="1", sha256=library._digest(tensors, json.loads(header["objective"])))
    assert lo.load(path) == lo.load("dpo")
    assert lo.record(path) == {"seed": 5}


def test_the_same_contents_are_the_same_bytes(tmp_path):
    for name in "ab":
        lo.save(lo.load("dpo"), tmp_path / name, record={"seed": 5, "name": "x"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_foreign_file_is_refused(path):
    safetensors.numpy.save_file({"weight": np.zeros(3, np.float32)}, path)
    refuse(path, "learned_objectives did not write it")


def test_a_directory_is_refused(tmp_path):
    refuse(tmp_path, "is a directory; give the .safetensors file in it")


def test_a_missing_file_is_refused(path):
    refuse(path, "There is no file")


def test_a_pickle_is_refused_and_not_run(tmp_path):
    class Intruder:
        def __reduce__(self):
            return Path.touch, (tmp_path / "intruded",)

    bait = tmp_path / "bait.safetensors"
    bait.write_bytes(pickle.dumps(Intruder()))
    refuse(bait, "is not a complete safetensors file")
    assert not (tmp_path / "intruded").exists()
    pickle.loads(bait.read_bytes())
    assert (tmp_path / "intruded").exists()


def rewrite(path, **changes):
    """The file again, with other metadata; None takes an entry out. A spec gets its checksum."""
    with safetensors.safe_open(path, framework="np") as file:
        header = file.metadata() | changes
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if {"objective", "record"} & changes.keys() and all(changes.values()) and "sha256" not in changes:
        header["sha256"] = library._digest(tensors, json.loads(header["objective"]), header["record"])
    header = {name: text for name, text in header.items() if text is not None}
    path.write_bytes(safetensors.numpy.save(tensors, metadata=header))


SPEC = {"type": "Clip", "static": {}, "children": {}}


def spec(**changes):
    return json.dumps({k: v for k, v in (SPEC | changes).items() if v != "absent"})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema": "3"}, "has schema 3, and this version reads up to 2: update"),
        ({"schema": "1"}, "do not match its checksum"),
        ({"schema": "two"}, "no schema number"),
        ({"schema": "9" * 5000}, "no schema number"),
        ({"schema": None}, "no schema number"),
        ({"format": "another"}, "did not write it"),
        ({"record": "{"}, "whole objective"),
        ({"record": "3"}, "its record is not a JSON object"),
        ({"record": None}, "whole objective: 'record'"),
        ({"objective": "{", "sha256": ""}, "whole objective"),
        ({"objective": "[" * 100_000, "sha256": ""}, "whole objective"),
        ({"objective": None, "sha256": ""}, "whole objective: 'objective'"),
        ({"sha256": None}, "whole objective: 'sha256'"),
        ({"sha256": "0" * 64}, "do not match its checksum"),
        ({"objective": "3"}, "whole objective"),
        ({"objective": "[]"}, "whole objective"),
        ({"objective": "null"}, "whole objective"),
        ({"objective": spec(type="absent")}, "whole objective: 'type'"),
        ({"objective": spec(type=[])}, "whole objective"),
        ({"objective": spec(type="Elsewhere")}, "an? Elsewhere, which is not registered here"),
        ({"objective": spec(static=3)}, "whole objective"),
        ({"objective": spec(static={"exec": "1"})}, "whole objective: .*'exec'"),
        ({"objective": spec(children=[1])}, "whole objective"),
        ({"objective": spec(children={"inner": None})}, "whole objective"),
        ({"objective": spec(type="NoDrift")}, r"nothing in it uses its tensors \['epsilon'\]"),
        ({"objective": spec(type="LPO")}, "whole objective: .*hidden"),
    ],
)
def test_absurd_metadata_are_refused(path, changes, reason):
    lo.save(lo.Clip(), path)
    rewrite(path, **changes)
    refuse(path, reason)


@pytest.mark.parametrize(
    ("static", "reason"),
    [
        (
            {"width": 9},
            r"an LPO of width 9 has layers of shapes \(8, 9\) and \(9,\), and",
        ),
        ({"width": "8"}, "whole objective"),
        ({"time_aware": True}, r"has layers of shapes \(16, 8\)"),
        ({"features": "v7"}, r"searched with feature map 'v7', and this version knows \['v1'\]"),
    ],
)
def test_an_lpo_that_does_not_fit_together_is_refused(path, static, reason):
    lo.save(lo.LPO.create(jax.random.key(0), width=8), path)
    with safetensors.safe_open(path, framework="np") as file:
        saved = json.loads(file.metadata()["objective"])
    rewrite(path, objective=json.dumps(saved | {"static": saved["static"] | static}))
    refuse(path, reason)


def test_no_tensor_may_change_its_type(path):
    lo.save(lo.Clip(), path)
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"'))
    refuse(path, "its tensors are not all float32")


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(library, "_types", dict(library._types))


class Squared(lo.Drift):
    """A user's own."""

    weight: jax.Array | float = 1.0

    def __call__(self, log_ratio, advantage, progress=None):
        return self.weight * log_ratio**2


def local_drift():
    """A class that no import finds."""

    class Local(Squared):
        pass

    return Local


def test_a_drift_that_no_import_finds_is_not_saved(path):
    with pytest.raises(ValueError, match=r"cannot save a Local, because no import finds its class again"):
        lo.save(lo.Mirror(local_drift()()), path)
    assert not path.exists()


def test_a_drift_of_a_module_comes_back_without_registration(path, samples):
    lo.save(lo.Mirror(Squared(0.3)), path)
    np.testing.assert_array_equal(lo.load(path).drift(*samples), Squared(0.3)(*samples))


def test_a_registered_drift_comes_back(path, registry, samples):
    assert lo.register(Squared) is Squared
    lo.save(lo.Mirror(Squared(0.3)), path)
    loaded = lo.load(path)
    assert isinstance(loaded.drift, Squared)
    np.testing.assert_array_equal(loaded.drift(*samples), Squared(0.3)(*samples))


def test_the_reader_must_have_registered_it_too(path, monkeypatch):
    with monkeypatch.context() as writer:
        local = local_drift()
        writer.setattr(library, "_types", library._types | {"Local": local})
        lo.save(lo.Mirror(local()), path)
    refuse(path, "not registered here: import the code that defines it")


def test_registering_twice_is_harmless_and_a_taken_name_is_not(registry):
    lo.register(lo.register(Squared))
    with pytest.raises(ValueError, match=r"the name Clip is taken by .*; choose another\."):
        lo.register(type("Clip", (lo.Drift,), {}))


def test_a_class_that_is_defined_again_is_registered_again(registry, path):
    """As by a notebook's cell that is run again. An instance of the class before it can still be saved."""
    first, second = local_drift(), local_drift()
    assert first is not second
    for each in (first, second):
        each.__qualname__ = "Local"  # as of a cell
        lo.register(each)
    lo.save(lo.Mirror(first()), path)
    assert type(lo.load(path).drift) is second


def test_a_taken_name_is_refused_with_the_place_of_the_other_class(registry):
    lo.register(Squared)
    line = inspect.getsourcelines(Squared)[1]
    with pytest.raises(
        ValueError, match=rf"the name Squared is taken by the class of .*test_library\.py, line {line}; choose"
    ):
        lo.register(type("Squared", (lo.Drift,), {"__module__": "elsewhere"}))


MOVING = """
from flax import struct

import learned_objectives as lo


class D(lo.Drift):
    {field}: float = 1.0
    power: int = struct.field(pytree_node=False, default=2)

    def __call__(self, log_ratio, advantage, progress=None):
        return self.{field}**2 * log_ratio**self.power
"""


@pytest.mark.parametrize(
    ("after", "sentence"),
    [
        (MOVING.format(field="alpha"), "has no field a, which this file holds: rename it back"),
        (
            MOVING.format(field="a").replace("power", "order"),
            "has no field power, which this file holds: rename it back",
        ),
        (
            MOVING.format(field="a").replace("power: int = ", "b: float\n    power: int = ").replace("= 1.0", ""),
            "needs the field b, which this file lacks: give it a default",
        ),
    ],
    ids=["leaf", "static", "new"],
)
def test_a_class_whose_fields_have_changed_is_named_with_its_place(tmp_path, path, monkeypatch, after, sentence):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "moving_fields.py"
    file.write_text(MOVING.format(field="a"))
    lo.save(lo.Mirror(importlib.import_module("moving_fields").D(0.5)), path)
    sys.modules.pop("moving_fields")
    file.write_text(after)
    importlib.invalidate_caches()
    linecache.clearcache()
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    with pytest.raises(lo.ObjectiveFileError) as refusal:
        lo.load(path)
    sys.modules.pop("moving_fields")
    assert str(refusal.value) == f"{path} does not fit the code here: D ({file}, line 7) {sentence}."


def test_only_drifts_and_objectives_register():
    with pytest.raises(TypeError, match="expected a subclass of Drift or Objective, got dict"):
        lo.register(dict)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file_and_no_other(path, monkeypatch, step):
    lo.save(lo.load("dpo"), path)
    before = path.read_bytes()

    def full_disk(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, step, full_disk)
    with pytest.raises(OSError, match="no space left"):
        lo.save(lo.load("ppo"), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_save_replaces_the_old_file_and_leaves_no_other(path):
    lo.save(lo.load("dpo"), path)
    lo.save(lo.load("ppo"), path)
    assert isinstance(lo.load(path).drift, lo.Clip)
    assert list(path.parent.iterdir()) == [path]


def test_a_directory_is_not_overwritten(tmp_path):
    with pytest.raises(IsADirectoryError, match="give the path of a file to write"):
        lo.save(lo.load("ppo"), tmp_path)


def test_nothing_here_can_run_what_it_reads():
    dangerous = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    files = sorted(Path(lo.__file__).parent.rglob("*.py"))
    assert len(files) >= 7
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not dangerous & {name.split(".")[0] for name in names}, file
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec"}, file
            assert not (isinstance(node, ast.keyword) and node.arg == "allow_pickle"), file


@pytest.mark.parametrize("name", ["a2c", "dpo", "mdpo", "ppo"])
def test_a_closed_form_has_no_record(name):
    with pytest.raises(ValueError, match=rf"'{name}' is a closed form and has no record, .*lo\.card\('{name}'\)"):
        lo.record(name)


def test_a_record_of_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match=r"Unknown .* 'lp0'; did you mean 'lpo'\?"):
        lo.record("lp0")


@pytest.mark.parametrize("read", [lo.load, lo.record])
@pytest.mark.parametrize("what", [3, None, lo.Clip()], ids=["number", "none", "drift"])
def test_neither_a_name_nor_a_path_is_refused(read, what):
    with pytest.raises(TypeError, match=r"expected a name or the path of a file, and got a \w+: names are a2c, "):
        read(what)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("objective.safetensors", lo.Clip()), "save takes an objective or a drift, then a path, and was given a str"),
        ((lo.Clip(), "x.safetensors", [1]), "a record is a mapping from names to JSON values, and was given as a list"),
    ],
    ids=["order", "record"],
)
def test_what_cannot_be_saved_is_refused(arguments, sentence):
    with pytest.raises(TypeError, match=sentence):
        lo.save(*arguments)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no directory .*/no to write mine\.safetensors into"):
        lo.save(lo.Clip(), tmp_path / "no" / "mine.safetensors")


def test_an_instance_is_not_registered():
    with pytest.raises(TypeError, match="register takes a class, and was given a Clip"):
        lo.register(lo.Clip())  # type: ignore[arg-type]
