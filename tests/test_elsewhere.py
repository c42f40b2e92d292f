"""The report on other people's agents says what it was given."""

import json
import os
import subprocess

import numpy as np
import pytest

import learned_objectives as lo
from benchmarks import elsewhere, peer_env
from benchmarks.record import ROOT
from discover.results.comparison import Comparison, Curve, Trial

AGENT = elsewhere.AGENTS["rejax"]


def curve(*returns):
    return Curve(np.float32(returns)[:, None], np.int64([512]))


def test_better_than_ppo_is_pooled_over_games_by_length_of_life():
    comparison = Comparison(
        {
            Trial("Breakout-MinAtar", 512): {"ppo": curve(1, 2), "dpo": curve(3, 4), AGENT.own: curve(1, 2)},
            Trial("Asterix-MinAtar", 512): {"ppo": curve(1, 2), "dpo": curve(1, 2)},
            Trial("Asterix-MinAtar", 1024): {"ppo": curve(3, 4), "dpo": curve(1, 2)},
        },
        {},
    )
    report = elsewhere.report_of(comparison, AGENT, {}, ["dpo"])
    found = report["better than ppo"]
    # 1 on Breakout, and 1/2 on Asterix, where all seeds tie or win in turn.
    assert found["dpo"]["512 steps, 2 games"].value == pytest.approx(0.75)
    assert found["dpo"]["1,024 steps, 1 games"].value == 0.0
    assert found[AGENT.own]["512 steps, 1 games"].value == 0.5
    assert json.dumps(report, default=lambda x: x._asdict())


def test_an_objective_is_filed_by_its_numbers(tmp_path):
    bench = object.__new__(elsewhere.Bench)
    bench.cells = tmp_path
    path = bench.file_of("dpo")
    assert lo.load(path).drift == lo.load("dpo").drift
    assert bench.file_of("dpo") == path != bench.file_of("ppo")


ONE_STEP = """
import jax, numpy as np
from rejax import PPO
from rejax.algos.ppo import AdvantageMinibatch
from benchmarks.rejax_agent import Life, algorithm

def after(objective):
    algo = algorithm(Life("CartPole-v1", 8192, objective, 1e-3, 1, 0))
    ts = algo.init_state(jax.random.PRNGKey(0))
    ts, seen = algo.collect_trajectories(ts)
    advantage, target = algo.calculate_gae(seen, algo.critic.apply(ts.critic_ts.params, ts.last_obs))
    # As if the policy had moved since: some ratios lie beyond the clip.
    seen = seen.replace(log_prob=seen.log_prob + 0.5 * jax.random.normal(jax.random.PRNGKey(1), seen.log_prob.shape))
    batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), AdvantageMinibatch(seen, advantage, target))
    return type(algo), algo.update_actor(ts, batch).actor_ts.opt_state

(own, a), (ours, b), (_, c) = after(""), after("ppo"), after("dpo")
assert own is PPO is not ours

# A schedule is what it says: lambda of 0.975 and half the entropy weight are rejax's own PPO with these settings.
import jax.numpy as jnp, learned_objectives as lo
numbers = jnp.log(jnp.array([[0.5, 2.0, 0.5, 1.0]]))
mirror = lo.ScheduledMirror.create(lo.Clip(0.2)).replace(numbers=numbers, entropy_coef=0.01, value_clip=0.2)
lo.save(mirror, "FILE")

def trained(algo):
    return jax.jit(algo.train_iteration)(algo.init_state(jax.random.PRNGKey(0)))

scheduled = trained(algorithm(Life("CartPole-v1", 8192, "FILE", 1e-3, 1, 0)))
own = algorithm(Life("CartPole-v1", 8192, "", 1e-3, 1, 0)).replace(ent_coef=0.005, vf_coef=1.0, gae_lambda=0.975)
for x, y in zip(jax.tree.leaves(scheduled.actor_ts.params), jax.tree.leaves(trained(own).actor_ts.params)):
    np.testing.assert_allclose(x, y, atol=1e-3)
for x, y in zip(jax.tree.leaves(scheduled.critic_ts.params), jax.tree.leaves(trained(own).critic_ts.params)):
    np.testing.assert_allclose(x, y, atol=1e-5)
gap = lambda x, y: max(float(np.abs(m - n).max()) for m, n in zip(jax.tree.leaves(x), jax.tree.leaves(y)))
print(gap(a, b), gap(a, c))
"""


@pytest.mark.parametrize(
    ("name", "sentence"), [("nope", "Unknown objective 'nope'"), ("lpg", "takes a drift, and lpg is a LPG")]
)
def test_what_rejax_cannot_train_is_refused_before_anything_is_trained(tmp_path, capsys, name, sentence):
    assert elsewhere.main([name, "--cells", str(tmp_path / "cells"), "--out", str(tmp_path / "new/out.json")]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "cells").exists()


@pytest.mark.slow
def test_ppo_as_a_drift_is_the_ppo_of_rejax_and_schedules_are_its_settings(tmp_path):
    try:
        interpreter = peer_env.python()
    except peer_env.PeerEnvError as error:
        pytest.skip(f"rejax cannot be installed: {error}")
    done = subprocess.run(
        [interpreter, "-W", "ignore", "-c", ONE_STEP.replace("FILE", str(tmp_path / "scheduled.safetensors"))],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    ppo, dpo = map(float, done.stdout.split())  # of the moments of Adam: a tenth of the gradient
    assert ppo < 1e-6
    assert dpo > 1e-4
