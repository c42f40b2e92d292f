"""An evaluation trains all objectives alike, goes on where it stopped, and mixes nothing."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import discover
import learned_objectives as lo
from discover.evaluation import evaluate as ev  # the module
from discover.evaluation.evaluate import evaluate
from discover.results import references
from discover.results.comparison import Comparison, Curve, Trial
from discover.runs.store import locked

WORLD = "probe/action"
SMALL = {"total_steps": 1024, "num_seeds": 3, "num_evals": 2}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """(directory, comparison) of an evaluation that ended."""
    out = tmp_path_factory.mktemp("evaluation")
    return out, evaluate(["ppo", "dpo"], [WORLD], out=out, **SMALL)


@pytest.fixture
def counted(monkeypatch):
    """The cells that are trained, as (objective's drift, environment, budget)."""
    trained, train = [], ev.train

    def counting(objective, env, **kwargs):
        trained.append((type(objective.drift).__name__, env, kwargs["total_steps"]))
        return train(objective, env, **kwargs)

    monkeypatch.setattr(ev, "train", counting)
    return trained


def test_a_cell_is_what_train_gives(first):
    alone = discover.train("dpo", WORLD, **SMALL)
    curve = first[1].curves[Trial(WORLD, 1024)]["dpo"]
    np.testing.assert_array_equal(curve.returns, alone.returns)
    np.testing.assert_array_equal(curve.env_steps, alone.env_steps)


def test_what_is_there_is_not_trained_again(first, counted):
    out, before = first
    after = evaluate(["ppo", "dpo"], [WORLD], out=out, **SMALL)
    assert not counted
    for name, curve in before.curves[Trial(WORLD, 1024)].items():
        np.testing.assert_array_equal(curve.returns, after.curves[Trial(WORLD, 1024)][name].returns)


def test_an_evaluation_that_was_cut_off_goes_on(tmp_path, counted, monkeypatch):
    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(["ppo", "dpo"], [WORLD], out=tmp_path, progress=stop, **SMALL)
    assert len(json.loads((tmp_path / "evaluation.json").read_text())["cells"]) == 1
    evaluate(["ppo", "dpo"], [WORLD], out=tmp_path, **SMALL)
    assert [name for name, *_ in counted] == ["Clip", "DPO"]


def test_more_may_be_asked_and_what_was_not_is_kept(tmp_path, counted):
    evaluate(["ppo"], [WORLD], out=tmp_path, **SMALL)
    comparison = evaluate(["dpo"], [WORLD], out=tmp_path, **SMALL | {"total_steps": (1024, 2048)})
    assert [(name, steps) for name, _, steps in counted] == [("Clip", 1024), ("DPO", 1024), ("DPO", 2048)]
    assert comparison.objectives == ["dpo"]
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert {(c["objective"], c["total_steps"]) for c in report["cells"]} == {
        ("ppo", 1024),
        ("dpo", 1024),
        ("dpo", 2048),
    }
    assert set(report["settings"]["objectives"]) == {"ppo", "dpo"}
    assert (tmp_path / "budgets.png").exists()


def test_each_cell_keeps_what_it_was_made_with(tmp_path, counted, monkeypatch):
    evaluate(["ppo"], [WORLD], out=tmp_path, **SMALL)
    monkeypatch.setattr(ev, "made_with", lambda: {"commit": "later"})
    evaluate(["ppo", "dpo"], [WORLD], out=tmp_path, **SMALL)
    first, second = json.loads((tmp_path / "evaluation.json").read_text())["cells"]
    assert first["made_with"]["versions"]["jax"] == jax.__version__
    assert second["made_with"] == {"commit": "later"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"total_steps": 2048}, "holds results of 1,024 environment steps"),
        ({"num_seeds": 4}, "whose num_seeds was 3, and it is 4 now"),
        ({"seed": 1}, "whose seed was 0, and it is 1 now"),
        ({"agent": discover.AgentConfig(num_envs=2)}, "agent.num_envs was 4, and it is 2 now"),
        ({"loss": discover.LossConfig(gamma=0.5)}, "loss.gamma was 0.99, and it is 0.5 now"),
    ],
)
def test_results_got_otherwise_are_not_mixed_in(first, counted, changes, sentence):
    out, _ = first
    before = (out / "evaluation.json").read_bytes()
    with pytest.raises(ValueError, match=sentence):
        evaluate(["ppo"], [WORLD], out=out, **SMALL | changes)
    assert not counted
    assert (out / "evaluation.json").read_bytes() == before


def test_results_from_before_a_setting_existed_have_its_default(first, tmp_path, counted):
    report = json.loads((first[0] / "evaluation.json").read_text())
    assert report["settings"]["setups"][WORLD]["agent"].pop("clip") == "joint"
    (tmp_path / "evaluation.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match=r"agent.clip was joint, and it is separate now"):
        evaluate(["ppo"], [WORLD], out=tmp_path, agent=discover.AgentConfig(clip="separate"), **SMALL)
    evaluate(["ppo"], [WORLD], out=tmp_path, **SMALL)
    assert not counted


def test_recorded_returns_are_of_agents_as_they_are():
    """What `python -m benchmarks.returns` need not train again, and `benchmarks.again` holds today's code against."""
    returns = pytest.importorskip("benchmarks.returns", reason="an installed package has no benchmarks")
    report = json.loads((Path(returns.__file__).parent / "results/returns.json").read_text())["groups"]
    assert all(returns.recorded(group, report) for group in returns.GROUPS)


def test_another_process_is_refused_while_one_goes_on(first, counted):
    with locked(first[0]), pytest.raises(ValueError, match="Another process is running in"):
        evaluate(["ppo", "dpo"], [WORLD], out=first[0], **SMALL)
    assert not counted


def test_results_of_an_objective_that_has_changed_are_not_mixed_in(tmp_path):
    mine = tmp_path / "mine.safetensors"
    lo.save(lo.DPO(alpha=2.0), mine)
    evaluate({"mine": mine}, [WORLD], out=tmp_path / "out", **SMALL)
    lo.save(lo.DPO(alpha=3.0), mine)
    with pytest.raises(ValueError, match="holds results of another mine, which has changed since"):
        evaluate({"mine": mine}, [WORLD], out=tmp_path / "out", **SMALL)


def edited(change):
    def edit(report):
        change(report)
        return json.dumps(report)

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        lambda report: "",
        lambda report: "{}",
        lambda report: "[1, 2]",
        lambda report: json.dumps(report)[:-20],
        edited(lambda r: r["settings"].pop("num_seeds")),
        edited(lambda r: r["settings"].update(objectives=[])),
        edited(lambda r: r["cells"].append(r["cells"][0])),
        edited(lambda r: r["cells"][0].update(returns=[])),
        edited(lambda r: r["cells"][0].update(returns=None)),
        edited(lambda r: r["cells"][0]["returns"].pop()),
        edited(lambda r: r["cells"][0]["env_steps"].pop()),
        edited(lambda r: r["cells"][0].update(total_steps="1024")),
        edited(lambda r: r["cells"][0].update(objective="dpo")),
    ],
)
def test_what_is_no_evaluation_is_refused_and_kept(first, tmp_path, counted, edit):
    report = json.loads((first[0] / "evaluation.json").read_text())
    report["settings"]["objectives"].pop("dpo")
    report["cells"] = report["cells"][:1]
    text = edit(report)
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(ValueError, match="is not a readable evaluation"):
        evaluate(["ppo"], [WORLD], out=tmp_path, **SMALL)
    assert (tmp_path / "evaluation.json").read_text() == text
    assert not counted


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """(directory, comparison) of an evaluation in which no episode ended: Acrobot's first ones outlast these lives."""
    out = tmp_path_factory.mktemp("endless")
    objectives = {"ppo": "ppo", "wide": lo.Mirror(lo.Clip(0.4))}  # of one kind, and so of one program
    sizes = {"num_seeds": 2, "num_evals": 2, "total_steps": (512, 1024)}
    with np.errstate(all="raise"):  # what a figure warns of is an error
        return out, evaluate(objectives, ["Acrobot-v1"], out=out, **sizes)


@pytest.mark.slow
def test_where_no_episode_ended_the_comparison_is_told_all_the_same(endless):
    """A return that no objective has is neither a crash nor a number."""
    out, comparison = endless
    assert "-inf" in comparison.table()
    report = json.loads((out / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert report["statistics"]["iqm"][0]["iqm"] == [None, None, None]
    assert (out / "budgets.png").exists()
    assert (out / "scores.png").exists()


def test_figures_that_cannot_be_written_cost_no_results(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ev, "draw", full)
    said = []
    comparison = evaluate(["ppo"], [WORLD], out=tmp_path, progress=said.append, **SMALL)
    assert said[-1] == "The figures could not be written (No space left on device); the results were."
    assert "probe/action" in comparison.table()
    assert json.loads((tmp_path / "evaluation.json").read_text())["statistics"]


def test_the_results_name_the_references_of_their_scores(endless):
    statistics = json.loads((endless[0] / "evaluation.json").read_text())["statistics"]
    assert statistics["references"]["Acrobot-v1"] == references.of("Acrobot-v1")
    assert statistics["references"]["Acrobot-v1"]["measured"]["commit"]


def test_where_ppo_is_no_better_than_chance_there_is_no_score(monkeypatch):
    rows = {"flat": {"random": -200.0, "ppo": -200.0}, "good": {"random": -200.0, "ppo": -100.0}}
    monkeypatch.setattr(references, "_load", lambda: {"envs": rows})
    assert references.of("flat") is None
    with pytest.raises(ValueError, match="no references are recorded for flat, only for good"):
        references.normalise("flat", np.zeros(2))


@pytest.mark.slow
def test_an_objective_that_does_not_fit_is_named_and_the_others_go_on(tmp_path):
    lpg = lo.LPG.create(jax.random.key(0), hidden=4, predictions=2, cell="gru")
    small = discover.AgentConfig(num_envs=2, num_steps=16, num_minibatches=1)
    sizes = {"agent": small, "out": tmp_path, "total_steps": 64, "num_seeds": 2}
    comparison = evaluate({"ppo": "ppo", "lpg": lpg}, ["Pendulum-v1"], **sizes)
    assert comparison.objectives == ["ppo"]
    assert "lpg in Pendulum-v1: LPG reads the probability of an action" in comparison.table()
    evaluate(["ppo"], ["Pendulum-v1"], **sizes)  # what did not fit before is still said
    (misfit,) = json.loads((tmp_path / "evaluation.json").read_text())["misfits"]
    assert (misfit["objective"], misfit["env"]) == ("lpg", "Pendulum-v1")
    with pytest.raises(ValueError, match="no objective fits any environment: LPG reads"):
        evaluate({"lpg": lpg}, ["Pendulum-v1"], agent=small, total_steps=64)


@pytest.mark.parametrize(
    ("objectives", "envs", "changes", "sentence"),
    [
        (["ppo", "dpoo"], [WORLD], {}, "did you mean 'dpo'"),
        (["ppo"], [WORLD, "CartPole-v2"], {}, "CartPole-v1"),
        (["ppo"], [WORLD], {"num_seeds": 1}, "at least 2 seeds"),
        (["ppo"], [WORLD], {"total_steps": ()}, "one budget"),
        (["ppo"], [WORLD], {"total_steps": (1024, 3)}, "at least one rollout"),
        ([], [WORLD], {}, "at least one objective"),
        ("ppo", [WORLD], {}, "takes lists"),
        (["ppo"], WORLD, {}, "takes lists"),
        ([lo.DPO()], [WORLD], {}, "needs a name to be listed by"),
        (["ppo"], [WORLD], {"total_steps": (1024, 1025)}, "are the same life of 2 updates"),
        (["ppo"], [WORLD], {"seed": -1}, "seed must be in"),
        (["ppo"], [WORLD], {"chunk": 0}, "chunk must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(counted, tmp_path, objectives, envs, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        evaluate(objectives, envs, out=tmp_path / "out", **SMALL | changes)
    assert not counted
    assert not (tmp_path / "out").exists()


def made_up(**finals):
    """A comparison of two trials with references, and one without."""
    trials = {Trial("CartPole-v1", 1000): 1.0, Trial("Acrobot-v1", 1000): -1.0, Trial(WORLD, 1000): 0.0}
    steps = np.array([1000])
    curves = {t: {n: Curve(np.asarray(f)[:, None] * k, steps) for n, f in finals.items()} for t, k in trials.items()}
    return Comparison(curves, {})


def test_a_score_is_zero_for_a_random_policy_and_one_for_ppo():
    row = json.loads(references.PATH.read_text())["envs"]["CartPole-v1"]
    scores = references.normalise("CartPole-v1", np.array([row["random"], row["ppo"], 2 * row["ppo"] - row["random"]]))
    np.testing.assert_allclose(scores, [0.0, 1.0, 2.0])


def test_scores_are_of_trials_with_references_alone():
    comparison = made_up(ppo=[100.0, 200.0], dpo=[300.0, 400.0])
    assert [t.env for t in comparison.common()] == ["CartPole-v1", "Acrobot-v1"]
    assert comparison.scores("dpo").shape == (2, 2)


def test_the_probability_of_improvement_is_over_ppo():
    """Better in all of one environment and worse in all of the other."""
    summary = made_up(ppo=[100.0, 200.0], dpo=[300.0, 400.0]).summary()
    found = summary["dpo"]["P(better than ppo)"]
    assert found.value == 0.5
    assert found.low < 0.5 < found.high
    assert "P(better than ppo)" not in summary["ppo"]


def test_a_table_names_budgets_where_there_are_several():
    comparison = made_up(ppo=[1.0, 2.0])
    assert comparison.table().splitlines()[1].startswith("CartPole-v1  ")
    more = Comparison(comparison.curves | {Trial(WORLD, 2_500_000): comparison.curves[Trial(WORLD, 1000)]}, {})
    assert more.table().splitlines()[4].startswith("probe/action, 2,500,000 steps  ")


def test_scores_by_references_of_another_budget_are_noted():
    """The references of CartPole and Acrobot are of 500,000 steps."""
    notes = made_up(ppo=[1.0] * 8).notes()
    assert len(notes) == 2
    assert notes[0].startswith(
        "Scores in CartPole-v1 at 1,000 steps: the reference, a score of 1, is PPO at 500,000 steps."
    )
    assert all(note in made_up(ppo=[1.0] * 8).table() for note in notes)
    trial, budget = Trial("Asterix-MinAtar", 262_144), np.array([262_144])
    assert Comparison({trial: {"ppo": Curve(np.ones((8, 1)), budget)}}, {}).notes() == []


def test_intervals_of_few_seeds_are_noted():
    assert made_up(ppo=[1.0] * 7).notes()[0].startswith("Fewer than 8 seeds (here 7): intervals are t-intervals")
    assert "Fewer than 8" not in made_up(ppo=[1.0] * 8).table()


def test_the_figures_show_every_objective():
    summary = made_up(ppo=[100.0, 200.0, 150.0], dpo=[300.0, 400.0, 350.0]).summary()
    figure = discover.plots.intervals(summary)
    assert [axis.get_title() for axis in figure.axes] == [
        "IQM",
        "median",
        "optimality gap (lower is better)",
        "P(better than ppo)",
    ]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["ppo", "dpo"]


def test_a_baseline_that_took_no_part_is_refused():
    with pytest.raises(ValueError, match="Unknown baseline 'poo'; did you mean 'ppo'"):
        made_up(ppo=[1.0, 2.0]).summary("poo")
