"""The protocol of comparisons: its sets are disjoint, its report is of one protocol, and the test is run once."""

import json

import numpy as np
import pytest

from benchmarks import protocol as p
from discover.results.comparison import Comparison, Curve, Trial

TEXT = """
seeds = 4
baseline = "ppo"
[train]
envs = ["CartPole-v1"]
shortest = 1000
longest = 4000
[validation]
seed = 0
trials = [["Acrobot-v1", 2000]]
[test]
seed = 10
trials = [["CartPole-v1", 8000], ["MountainCar-v0", 2000]]
"""


def write(tmp_path, old="", new=""):
    assert old in TEXT
    path = tmp_path / "protocol.toml"
    path.write_text(TEXT.replace(old, new, 1))
    return path


def test_the_protocol_of_this_project_holds_what_it_promises():
    protocol = p.read()
    test = protocol.trials["test"]
    assert len(test) >= 12
    assert not set(test) & set(protocol.trials["validation"])
    assert {2**17, 2**18, 2**20} <= {trial.total_steps for trial in test}
    assert max(trial.total_steps for trial in test) > protocol.bounds[1]
    assert protocol.seeds >= 8


def test_its_digest_is_of_its_content(tmp_path):
    first = p.read(write(tmp_path)).digest
    assert p.read(write(tmp_path, "\n[train]", "\n# a comment\n[train]")).digest == first
    assert p.read(write(tmp_path, "longest = 4000", "longest = 4001")).digest != first


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            '"CartPole-v1", 8000',
            '"CartPole-v1", 4000',
            "CartPole-v1, 4,000 steps is a trial of the test, and training meets it",
        ),
        (
            '"Acrobot-v1", 2000',
            '"CartPole-v1", 1000',
            "CartPole-v1, 1,000 steps is a trial of the validation, and training",
        ),
        (
            '"Acrobot-v1", 2000',
            '"MountainCar-v0", 2000',
            "MountainCar-v0, 2,000 steps is a trial of the test and of the valid",
        ),
        ('"Acrobot-v1"', '"Acrobat-v1"', "names 'Acrobat-v1', which is no environment"),
        ("seed = 10", "seed = 3", "validation and test share seeds"),
        ("shortest = 1000\n", "", "is not a protocol .KeyError.'shortest'.."),
        ("seeds = 4", "seeds = ", "is not a protocol"),
    ],
)
def test_a_protocol_that_cannot_be_is_refused(tmp_path, old, new, sentence):
    with pytest.raises(ValueError, match=sentence):
        p.read(write(tmp_path, old, new))


def test_the_report_counts_seeds_that_are_better_than_the_baseline(tmp_path):
    protocol = p.read(write(tmp_path))
    curve = lambda *final: Curve(np.array(final, np.float32)[:, None], np.array([1]))
    curves = {
        Trial("CartPole-v1", 8000): {"ppo": curve(1, 2, 3, 4), "dpo": curve(5, 6, 7, 8)},
        Trial("MountainCar-v0", 2000): {"ppo": curve(1, 2, 3, 4), "dpo": curve(0, 2, 0, 0)},
    }
    report = p.report_of(protocol, "test", Comparison(curves, {}), before={})
    better = report["better than ppo"]["dpo"]
    assert better["8,000 steps"].value == 1.0
    assert better["2,000 steps"].value == 1.5 / 16  # 2 is better than 1 and ties with 2
    assert better["all"].value == pytest.approx((1.0 + 1.5 / 16) / 2)
    assert (report["protocol"], report["seed"]) == (protocol.digest, 10)


def test_objectives_that_the_report_has_are_read_from_it_and_not_trained(tmp_path, monkeypatch):
    protocol, trials = p.read(write(tmp_path)), [Trial("CartPole-v1", 8000), Trial("MountainCar-v0", 2000)]
    curve = lambda *final: Curve(np.array(final, np.float32)[:, None], np.array([1]))
    first = Comparison({trial: {"ppo": curve(1, 2, 3, 4)} for trial in trials}, {})
    report = json.loads(json.dumps(p.report_of(protocol, "test", first, before={})))
    asked = []

    def evaluate(names, environments, **settings):
        asked.append((names, environments))
        return Comparison({Trial(environments[0], settings["total_steps"]): {"dpo": curve(5, 6, 7, 8)}}, {})

    monkeypatch.setattr(p, "evaluate", evaluate)
    known = p.recorded(protocol, "test", report)
    both = p.measure(protocol, "test", ["dpo"], tmp_path, known=known)
    assert asked == [(["dpo"], [trial.env]) for trial in trials]
    again = p.report_of(protocol, "test", both, before=report | {"commit": "abc"})
    assert again["commits"]["ppo"] == report["commits"]["ppo"]
    assert set(again["commits"]) == {"ppo", "dpo"}
    assert [list(both.curves[trial]["ppo"].final) for trial in trials] == [[1, 2, 3, 4]] * 2
    other = report | {"objectives": {"ppo": "0"}}
    assert not any(p.recorded(protocol, "test", other).curves.values())
    assert not any(p.recorded(protocol, "validation", report).curves.values())


def test_results_of_another_protocol_or_of_other_numbers_are_refused(tmp_path):
    protocol = p.read(write(tmp_path))
    with pytest.raises(ValueError, match=r"^the report there is of the protocol abc, and this one is"):
        p.require_new({"protocol": "abc"}, protocol, ["dpo"])
    with pytest.raises(ValueError, match=r"^dpo was tested already with other numbers"):
        p.require_new({"protocol": protocol.digest, "objectives": {"dpo": "0"}}, protocol, ["dpo"])


def test_a_protocol_that_cannot_be_ends_the_command_with_a_sentence(tmp_path, capsys):
    path = write(tmp_path, '"CartPole-v1", 8000', '"CartPole-v1", 2000')
    assert p.main(["test", "dpo", "--protocol", str(path), "--report", str(tmp_path / "report.json")]) == 2
    assert capsys.readouterr().err.startswith("benchmarks.protocol: CartPole-v1, 2,000 steps is a trial of the test")
    assert not (tmp_path / "report.json").exists()
