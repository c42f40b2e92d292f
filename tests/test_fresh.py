"""Returns over fresh seeds: lives are those of `discover.train`, the cut share is PPO's, units cover every seed once."""

import json

import jax
import jax.numpy as jnp
import numpy as np

import discover
import learned_objectives as lo
from benchmarks import fresh
from benchmarks.ratios import is_cut, watch
from discover.setups import usual_setup


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


def test_parts_cover_every_unit_once():
    every = fresh.units()
    parts = [unit for i in range(7) for unit in fresh.part_of(every, f"{i}/7")]
    assert sorted(parts) == sorted(every)
    assert len(set(every)) == len(every)
    assert len({unit.file for unit in every}) == len(every)


def test_merge_joins_the_blocks_in_order_and_leaves_out_what_is_not_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(fresh, "provenance", dict)
    for unit in fresh.units():
        if unit.env != "Acrobot-v1" or unit.objective not in ("ppo", "a2c", "lpo") or unit[2:] == ("a2c", 30):
            continue
        value = unit.first + 100.0 * (unit.objective == "lpo")
        told = unit._asdict() | {
            "seed": fresh.SEED,
            "count": 10,
            "fingerprint": fresh.fingerprint(fresh.resolve_objective(unit.objective)),
            "setup": fresh.asdict(usual_setup(unit.env)),
            "made_with": {"commit": "c"},
            "final_returns": [value] * 9 + [None],
            "cut": [0.25] * 10,
            "largest": [unit.first / 100] * 10,
        }
        (tmp_path / unit.file).write_text(json.dumps(told))
    fresh.main(["--merge", "--cells", str(tmp_path), "--out", str(tmp_path / "out.json")])
    drifts = json.loads((tmp_path / "out.json").read_text())["groups"]["drifts"]
    rows = {row["objective"]: row for row in drifts["rows"]}
    assert set(rows) == {"ppo", "lpo"}
    assert rows["ppo"]["final_returns"] == [x for first in (0, 10, 20, 30) for x in [first] * 9 + [None]]
    assert drifts["ratios"][0] == {
        "env": "Acrobot-v1", "total_steps": 131072, "objective": drifts["ratios"][0]["objective"], "cut": 0.25,
        "largest": float(np.float32(0.3)),
    }  # fmt: skip
    # 36 of 40 LPO seeds beat all of PPO's; of those without a return, PPO's 4 lose to 36 and tie with 4.
    assert np.isclose(drifts["better than ppo"]["all"]["lpo"][0], (36 * 40 + 4 * 4 / 2) / 1600)
