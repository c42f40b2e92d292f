"""A user's class whose code changes between a run and its continuation, and settings that fail as they are made."""

import dataclasses
import functools
import importlib
import linecache
import sys

import crash
import numpy as np
import pytest

import discover
import learned_objectives as lo
from discover import cli
from discover.agents.objectives import fingerprint, identity
from discover.evaluation.evaluate import evaluate
from envs import plugs

DRIFT = """
import jax
import learned_objectives as lo


class Pull(lo.Drift):
    a: jax.Array | float = 1.0

    def __call__(self, log_ratio, advantage, progress=None):
        return EQUATION
"""
SQUARE = "self.a**2 * log_ratio**2"

FAMILY = """
from dataclasses import dataclass

import discover
import learned_objectives as lo


@dataclass(frozen=True)
class Strict(discover.ObjectiveConfig):
    width: float = 0.2

    def __post_init__(self):
        if self.width <= 0:
            raise RuntimeError("the width is not positive")

    def template(self, key, loss):
        return loss.on(lo.Mirror(drift=lo.Clip(self.width)))


@dataclass(frozen=True)
class Bare(discover.ObjectiveConfig):
    width: float

    def template(self, key, loss):
        return loss.on(lo.Mirror(drift=lo.Clip(self.width)))
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a module, and imports it anew."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        linecache.clearcache()
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        return importlib.import_module(name)

    yield write
    for name in ("pull", "family"):
        sys.modules.pop(name, None)


def drift(equation=SQUARE, field="a: jax.Array | float = 1.0"):
    return DRIFT.replace("EQUATION", equation).replace("a: jax.Array | float = 1.0", field)


@pytest.fixture
def begun(written, tmp_path):
    written("pull", drift())
    recipe = dataclasses.replace(crash.recipe(), objective="pull:Pull", generations=1)
    discover.meta_train(recipe, tmp_path / "run", quiet=True)
    return dataclasses.replace(recipe, generations=2)


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_equation(written, begun, tmp_path):
    log = (tmp_path / "run/metrics.jsonl").read_bytes()
    written("pull", drift("2.0 * self.a**2 * log_ratio**2"))
    with pytest.raises(ValueError, match=r"values of Pull have changed since the run .* \(.*pull.py, line \d+\)"):
        discover.meta_train(begun, tmp_path / "run", quiet=True)
    written("pull", drift("self.a * log_ratio"))
    with pytest.raises(ValueError, match=r"Pull is no drift: .*pull.py"):
        discover.meta_train(begun, tmp_path / "run", quiet=True)
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == log
    written("pull", drift("log_ratio**2 * self.a**2"))  # the same values
    assert len(discover.meta_train(begun, tmp_path / "run", quiet=True).rows) > 2


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_field(written, begun, tmp_path):
    written("pull", drift(field="a: jax.Array | float = 1.0\n    b: jax.Array | float = 1.0"))
    with pytest.raises(ValueError, match=r"does not fit Pull \(.*pull.py, line \d+\): its drift.b is float32\[\] now"):
        discover.meta_train(begun, tmp_path / "run", quiet=True)


def test_ours_are_known_by_their_numbers_alone(written):
    assert identity(lo.load("lpo")) == fingerprint(lo.load("lpo"))
    before = identity(lo.Mirror(drift=written("pull", drift()).Pull()))
    assert identity(lo.Mirror(drift=written("pull", "\n\n# moved\n" + drift()).Pull())) == before
    assert identity(lo.Mirror(drift=written("pull", drift("log_ratio**4")).Pull())) != before


def test_the_code_of_a_plug_has_its_bases_and_no_wrapper(written):
    text = "class Base:\n    size = 1\n\n\nclass Kite(Base):\n    pass\n"
    found = [
        plugs.code_digest(functools.partial(written("pull", t).Kite)) for t in (text, text.replace("1", "2"), text)
    ]
    assert found[0] == found[2] != found[1]


def test_classes_of_one_factory_are_two(written):
    made = written(
        "pull", "import learned_objectives as lo\n\n\ndef make():\n    class D(lo.Clip):\n        pass\n    return D\n"
    )
    lo.register(made.make())
    with pytest.raises(ValueError, match=r"the name D is taken by the class of .*pull.py"):
        lo.register(made.make())


def test_results_of_another_equation_are_not_mixed(written, tmp_path):
    written("pull", drift())
    sizes = {"total_steps": 512, "num_seeds": 2, "num_evals": 1, "out": tmp_path / "out"}
    found = evaluate(["pull:Pull"], ["CartPole-v1"], **sizes)
    written("pull", drift("1000.0 * log_ratio**2"))
    with pytest.raises(ValueError, match=r"holds results of another pull:Pull, which has changed since"):
        evaluate(["pull:Pull"], ["CartPole-v1"], **sizes)
    written("pull", drift())
    again = evaluate(["pull:Pull"], ["CartPole-v1"], **sizes)
    np.testing.assert_array_equal(*(next(iter(each.curves.values()))["pull:Pull"].returns for each in (found, again)))


def test_results_of_another_environment_are_not_mixed(written, tmp_path):
    code = (
        "from gymnax.environments.classic_control.cartpole import CartPole\n\n\nclass Cart(CartPole):\n    extra = 1\n"
    )
    sizes = {"total_steps": 512, "num_seeds": 2, "num_evals": 1, "out": tmp_path / "out"}
    written("pull", code)
    evaluate(["ppo"], ["pull:Cart"], **sizes)
    written("pull", code.replace("extra = 1", "extra = 2"))
    with pytest.raises(ValueError, match=r"holds results of another pull:Cart, which has changed since"):
        evaluate(["ppo"], ["pull:Cart"], **sizes)


@pytest.mark.parametrize("by", ["flag", "file"])
def test_settings_that_fail_are_a_sentence_with_the_line(written, tmp_path, capsys, by):
    written("family", FAMILY)
    (tmp_path / "c.toml").write_text('[objective]\nkind = "family:Strict"\nwidth = -1.0\n')
    more = (
        ["--objective", "family:Strict", "--objective.width", "-1"]
        if by == "flag"
        else ["--config", str(tmp_path / "c.toml")]
    )
    assert cli.main(["meta-train", "quickstart", *more, "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "family.py, line 14: RuntimeError: the width is not positive" in said


def test_a_family_needs_defaults(written, capsys):
    written("family", FAMILY)
    assert (
        cli.main(["meta-train", "quickstart", "--objective", "family:Bare", "--objective.width", "1", "--dry-run"]) == 2
    )
    assert "Bare needs defaults: give one to width (" in capsys.readouterr().err
