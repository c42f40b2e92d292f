"""Replication: watched lives are those of `discover.train`, the cut share is PPO's, evaluations are added to the results."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import discover
import learned_objectives as lo
from benchmarks import replication
from benchmarks.ratios import is_cut, watch
from discover.agents.setups import usual_setup
from discover.results.comparison import Trial

pytestmark = pytest.mark.slow


def test_watched_lives_are_those_of_train():
    setup = usual_setup("CartPole-v1")
    lives = watch(lo.load("ppo"), "CartPole-v1", setup, total_steps=10_240, seed=3, first=2, count=2)
    trained = discover.train("ppo", "CartPole-v1", total_steps=10_240, num_seeds=4, seed=3)
    np.testing.assert_allclose(lives.final_returns, trained.returns[2:, -1], rtol=0.05)
    assert (lives.metrics["largest"] > 0).all()
    assert ((lives.metrics["cut"] >= 0) & (lives.metrics["cut"] < 1)).all()


def test_cut_is_where_the_clip_has_no_gradient():
    change = jnp.linspace(-0.5, 0.5, 100)  # r - 1
    for advantage in (1.0, -1.0):
        slope = jax.vmap(jax.grad(lo.load("ppo").surrogate), (0, None))(jnp.log1p(change), jnp.float32(advantage))
        np.testing.assert_array_equal(is_cut(change, jnp.full(100, advantage)), jnp.abs(slope) < 1e-5)


TRIAL = Trial("CartPole-v1", 2560)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty results file and cards, and one short trial with two seeds."""
    cards = tmp_path / "tested.json"
    cards.write_text(json.dumps({"lpo_2026_11": {}, "ta_lpo_2026_11": {}}))
    monkeypatch.setattr(replication, "RESULTS", tmp_path / "replication.json")
    monkeypatch.setattr(replication, "TESTED", cards)
    monkeypatch.setattr(replication, "TRIALS", (TRIAL,))
    monkeypatch.setattr(replication, "SEEDS", 2)
    return replication.RESULTS


def evaluated(directory, *names, seed=replication.SEED):
    discover.evaluate(
        list(names), envs=[TRIAL.env], total_steps=TRIAL.total_steps, num_seeds=2, num_evals=1, seed=seed, out=directory
    )
    return str(directory)


def test_evaluations_are_added_to_the_results(results, tmp_path, capsys):
    replication.main([evaluated(tmp_path / "a", "ppo", "lpo_2026_11")])
    replication.main(["--missing"])
    assert capsys.readouterr().out == (
        "discover evaluate a2c dpo mdpo ta_lpo_2026_11 --envs CartPole-v1 --total-steps 2560 --num-seeds 2 --seed 777000 "
        "--out runs/replication/CartPole-v1\n"
    )
    replication.main([evaluated(tmp_path / "b", "ta_lpo_2026_11")])
    report = json.loads(results.read_text())
    assert [row["objective"] for row in report["rows"]] == ["ppo", "lpo_2026_11", "ta_lpo_2026_11"]
    lives = discover.train(
        "lpo_2026_11", TRIAL.env, total_steps=TRIAL.total_steps, num_seeds=2, seed=replication.SEED, num_evals=1
    )
    np.testing.assert_allclose(report["rows"][1]["final_returns"], lives.returns[:, -1], atol=1e-3)


def test_evaluations_with_other_seeds_are_refused(results, tmp_path):
    with pytest.raises(ValueError, match="has 2 seeds from 5, not 2 from 777000"):
        replication.main([evaluated(tmp_path / "a", "ppo", seed=5)])
