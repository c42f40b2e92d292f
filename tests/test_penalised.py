"""Mirrors with another policy loss: an adaptive penalty, a penalty towards an average of parameters, and dropped samples."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_mirror import BIRTH, GAMMA, LAMBDA, random_rollout

import discover
import envs
import learned_objectives as lo
from discover.agents.agent import Agent
from discover.agents.config import AgentConfig
from discover.agents.objectives import as_arrays

SMALL = AgentConfig(num_envs=4, num_steps=16, num_minibatches=2, hidden=(16,))
OBJECTIVES = [lo.AdaptiveKLMirror(), lo.AveragedKLMirror(), lo.DropoutMirror()]
NAMES = [type(objective).__name__ for objective in OBJECTIVES]


def measured(kl, step=512.0):
    return lo.Progress(jnp.float32(step), jnp.float32(1e5), lo.Statistics.typical().replace(kl=jnp.float32(kl)))


def test_the_weight_is_halved_and_doubled_as_in_the_paper():
    objective, rollout, beta = lo.AdaptiveKLMirror(target=0.03), random_rollout(0, 4, 2), jnp.float32(1.0)
    found = []
    for kl in (0.019, 0.021, 0.044, 0.046, 9.0, 0.0):
        targets, beta = objective.observe(rollout, beta, measured(kl))
        found.append(float(beta))
        np.testing.assert_array_equal(targets.beta, np.full((4, 2), found[-1]))
    assert found == [0.5, 0.5, 0.5, 1.0, 2.0, 1.0]


def test_the_weight_stays_at_birth_and_within_its_limits():
    objective, rollout = lo.AdaptiveKLMirror(), random_rollout(0, 4, 2)
    beta = objective.init_state()
    assert float(objective.observe(rollout, beta, measured(0.0, step=0.0))[1]) == float(beta) == 1.0
    for kl, limit in ((1.0, 1e4), (0.0, 1e-4)):
        beta = jnp.float32(1.0)
        for _ in range(20):
            beta = objective.observe(rollout, beta, measured(kl))[1]
        assert float(beta) == pytest.approx(limit)


def test_an_adaptive_penalty_needs_the_divergence():
    with pytest.raises(ValueError, match="AdaptiveKLMirror reads statistics of the agent's last update"):
        lo.AdaptiveKLMirror().observe(random_rollout(0, 4, 2), jnp.float32(1.0), lo.Progress(0.0, 1e5))


def of_batch(objective, targets, seed=0):
    """(loss, metrics, log ratio, normalised advantage), of a random rollout and another policy."""
    rollout = random_rollout(seed, 6, 4)
    log_ratio = np.random.default_rng(seed).normal(size=(6, 4)).astype(np.float32) * 0.5
    loss, metrics = objective.actor_loss(rollout.log_prob + log_ratio, jnp.zeros((6, 4)), rollout, targets, BIRTH)
    advantage = np.asarray(targets.advantage, np.float64)
    return float(loss), metrics, log_ratio.astype(np.float64), (advantage - advantage.mean()) / advantage.std()


def test_the_loss_of_an_adaptive_penalty_by_hand():
    objective, rollout = lo.AdaptiveKLMirror(gamma=GAMMA, gae_lambda=LAMBDA), random_rollout(0, 6, 4)
    targets, _ = objective.observe(rollout, jnp.float32(4.0), measured(0.01))
    loss, metrics, x, a = of_batch(objective, targets)
    r = np.exp(x)
    assert loss == pytest.approx(-(r * a - 4.0 * (r - 1 - x)).mean(), rel=1e-4)
    assert float(metrics["beta"]) == 4.0
    plain = lo.Mirror(drift=lo.NoDrift(), gamma=GAMMA, gae_lambda=LAMBDA).targets(rollout, BIRTH)
    np.testing.assert_array_equal(targets.advantage, plain.advantage)


def test_an_agent_carries_the_weight_through_its_life():
    objective = as_arrays(lo.AdaptiveKLMirror(target=0.003))
    env, params = envs.make("CartPole-v1")
    agent = Agent.fit(env, SMALL, objective)
    task = agent.task(params, 100 * SMALL.steps_per_update)
    update = jax.jit(agent.update)
    state, expected, seen = agent.init(task, jax.random.key(0)), 1.0, []
    for number in range(12):
        kl = float(state.statistics.kl)
        state, _ = update(objective, task, state)
        expected *= 1.0 if number == 0 else 0.5 if kl < 0.003 / 1.5 else 2.0 if kl > 0.003 * 1.5 else 1.0
        seen.append(float(state.memory))
        assert seen[-1] == expected
    assert len({*seen}) > 1


def with_heads(seed, logits, average):
    """A random rollout as an agent with heads has it, and the outputs of the agent as it is now."""
    rollout = random_rollout(seed, *np.shape(logits)[:2])
    target = {"value": rollout.critic, "logits": jnp.asarray(average)}
    critic = {"value": rollout.critic, "logits": jnp.asarray(average), "target": target}
    following = {"value": rollout.next_critic, "logits": jnp.asarray(average), "target": target}
    outputs = lo.Outputs(
        rollout.log_prob, jnp.zeros_like(rollout.log_prob), {"value": rollout.critic + 1.0, "logits": logits}
    )
    return rollout, rollout._replace(critic=critic, next_critic=following), outputs


def test_the_loss_of_a_penalty_towards_an_average_by_hand():
    rng = np.random.default_rng(0)
    logits, average = rng.normal(size=(2, 6, 4, 3)).astype(np.float32)
    plain, rollout, outputs = with_heads(0, logits, average)
    objective = lo.AveragedKLMirror(weight=0.3, gamma=GAMMA, gae_lambda=LAMBDA)
    loss, metrics = objective.loss(outputs, rollout, objective.targets(rollout, BIRTH), BIRTH)
    p, q = (np.exp(y) / np.exp(y).sum(-1, keepdims=True) for y in (logits.astype(float), average.astype(float)))
    kl = (p * np.log(p / q)).sum(-1).mean()
    mirror = lo.Mirror(gamma=GAMMA, gae_lambda=LAMBDA)
    # The value of a successor beyond a time limit is not known here.
    cut = np.asarray(plain.truncated & ~plain.terminated)[..., None]
    plain = plain._replace(next_critic=jnp.where(cut, plain.critic, plain.next_critic))
    expected, _ = mirror.loss(outputs._replace(critic=plain.critic + 1.0), plain, mirror.targets(plain, BIRTH), BIRTH)
    assert cut.any()
    assert float(metrics["kl_to_average"]) == pytest.approx(kl, rel=1e-5)
    assert float(loss) == pytest.approx(float(expected) + 0.3 * kl, rel=1e-5)


def test_the_average_is_one_of_parameters_and_gets_no_gradient():
    logits = np.random.default_rng(1).normal(size=(6, 4, 3)).astype(np.float32)
    _, rollout, outputs = with_heads(1, logits, logits)
    objective = lo.AveragedKLMirror()

    def loss(average):
        critic = rollout.critic | {"target": {"value": rollout.critic["value"], "logits": average}}
        targets = objective.targets(rollout, BIRTH)
        return objective.loss(outputs, rollout._replace(critic=critic), targets, BIRTH)[0]

    assert not np.asarray(jax.grad(loss)(jnp.asarray(logits) + 1.0)).any()
    objective = as_arrays(objective.replace(share=0.75))
    env, params = envs.make("CartPole-v1")
    agent = Agent.fit(env, SMALL, objective)
    task = agent.task(params, 100 * SMALL.steps_per_update)
    before = agent.init(task, jax.random.key(0))
    after, _ = jax.jit(agent.update)(objective, task, before)
    for old, new, average in zip(*map(jax.tree.leaves, (before.params, after.params, after.target)), strict=True):
        np.testing.assert_allclose(average, 0.75 * old + 0.25 * new, atol=1e-6)


def test_an_average_needs_discrete_actions():
    env, _ = envs.make("Pendulum-v1")
    with pytest.raises(ValueError, match="AveragedKLMirror reads the probability of an action"):
        Agent.fit(env, SMALL, lo.AveragedKLMirror())


def test_dropped_samples_by_hand():
    objective = lo.DropoutMirror(threshold=0.3, gamma=GAMMA, gae_lambda=LAMBDA, entropy_coef=0.0)
    targets = objective.targets(random_rollout(2, 6, 4), BIRTH)
    loss, metrics, x, a = of_batch(objective, targets, seed=2)
    r = np.exp(x)
    kept = np.abs(r - 1) <= 0.3
    gain = np.minimum(r * a, np.clip(r, 0.8, 1.2) * a)
    assert 0 < kept.sum() < kept.size
    assert loss == pytest.approx(-gain[kept].mean(), rel=1e-4)
    assert float(metrics["dropped"]) == pytest.approx(1 - kept.mean())


def test_dropout_is_a_mirror_where_nothing_is_dropped_and_nothing_where_all_is():
    rollout = random_rollout(3, 6, 4)
    mirror, all_of, none = lo.Mirror(), lo.DropoutMirror(threshold=1e6), lo.DropoutMirror(threshold=1e-9)
    targets = mirror.targets(rollout, BIRTH)
    assert of_batch(all_of, targets, 3)[0] == pytest.approx(of_batch(mirror, targets, 3)[0], rel=1e-5)
    assert of_batch(none, targets, 3)[0] == 0.0

    def loss(shift):
        return none.actor_loss(rollout.log_prob + shift, jnp.zeros((6, 4)), rollout, targets, BIRTH)[0]

    assert not np.asarray(jax.grad(loss)(jnp.full((6, 4), 30.0))).any()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=NAMES)
def test_each_trains_an_agent_and_survives_a_file(objective, tmp_path):
    lo.save(objective, tmp_path / "it.safetensors")
    again = lo.load(tmp_path / "it.safetensors")
    assert again == objective
    agent = AgentConfig(num_envs=4, num_steps=64, normalise_reward=True, learning_rate=2e-3)
    returns = discover.train(again, "CartPole-v1", total_steps=16_384, num_seeds=2, agent=agent, num_evals=4).returns
    assert returns[:, -1].mean() > 1.5 * 21.2  # a random policy's


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lo.AdaptiveKLMirror(target=0.0), "the target of an AdaptiveKLMirror must be positive and finite, and is 0.0"),
        (
            lo.AveragedKLMirror(weight=-1.0),
            "the weight of an AveragedKLMirror must be positive and finite, and is -1.0",
        ),
        (lo.AveragedKLMirror(share=1.0), r"the share of an AveragedKLMirror must be in \[0, 1\), and is 1.0"),
        (
            lo.DropoutMirror(threshold=float("nan")),
            "the threshold of a DropoutMirror must be positive and finite, and is nan",
        ),
    ],
)
def test_fields_that_cannot_be_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        wrong.validate()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [lo.AdaptiveKLMirror, lo.AveragedKLMirror, lo.DropoutMirror])
def test_a_search_whose_agents_live_on_is_resumed_with_what_their_objective_remembers(kind, tmp_path):
    recipe = discover.Recipe(
        name="penalised_test",
        objective=kind(drift=lo.Clip(jnp.float32(0.2))),
        total_steps=2048,
        generations=4,
        evaluate_every=2,
        evaluation_seeds=2,
        checkpoint_every=2,
        agent=SMALL,
        search=discover.RollingConfig(population=4),
    )
    whole = discover.meta_train(recipe, tmp_path / "whole", quiet=True)
    discover.meta_train(replace(recipe, generations=2), tmp_path / "parts", quiet=True)
    parts = discover.meta_train(recipe, tmp_path / "parts", quiet=True)
    for one, other in zip(jax.tree.leaves(whole.objective), jax.tree.leaves(parts.objective), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [row.get("fitness") for row in whole.rows] == [row.get("fitness") for row in parts.rows]


@pytest.mark.parametrize(
    ("objective", "sentence"),
    [
        (
            lo.HLGaussMirror(drift=lo.Clip(jnp.float32(0.2))),
            "that of HLGaussMirror predicts 51 numbers per state: choose 'debiased'",
        ),
        (lo.GroupMirror(drift=lo.Clip(jnp.float32(0.2))), "that of GroupMirror is not trained: choose 'debiased'"),
        (lo.AveragedKLMirror(drift=lo.Clip(jnp.float32(0.2))), "that of AveragedKLMirror has outputs of other kinds"),
    ],
    ids=["hl-gauss", "group", "averaged"],
)
def test_a_critic_that_is_no_value_gives_no_advantages_to_a_meta_gradient(objective, sentence, tmp_path):
    search = discover.MetaGradConfig(members=2, window=2, estimator="standard")
    recipe = discover.Recipe(
        name="standard_test", objective=objective, total_steps=2048, generations=1, agent=SMALL, search=search
    )
    with pytest.raises(ValueError, match=sentence):
        discover.meta_train(recipe, tmp_path / "run", quiet=True)
