"""Recurrent agents: cells against flax and NumPy, memories that begin with an episode, whole sequences, bad input."""

from __future__ import annotations

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import discover
import envs
import learned_objectives as lo
from discover.agents import recurrent
from discover.agents.agent import Agent
from discover.agents.config import AgentConfig
from discover.agents.observations import Recalled

CONFIG = AgentConfig(num_envs=4, num_steps=8, num_minibatches=2, num_epochs=2, hidden=(16, 12), network="gru")
KINDS = ("gru", "mingru")


def agent_of(kind="gru", env="CartPole-v1", objective="ppo", **changes):
    return Agent.fit(envs.make(env)[0], replace(CONFIG, network=kind, **changes), lo.load(objective))


def lived(agent, objective="ppo", updates=2):
    """(task, the state after some updates, the next rollout)."""
    objective = lo.load(objective)
    task = agent.task(agent.env.default_params, 100 * agent.config.steps_per_update)
    state, _ = jax.jit(lambda key: agent.train(objective, task, key, num_updates=updates))(jax.random.key(0))
    keys = list(jax.random.split(jax.random.key(1), 3))
    return task, state, agent.rollout(objective, task, state, keys)[1]


def test_the_gru_is_that_of_flax():
    cell = recurrent.GRU(5, jax.lax.dot_general)
    hidden, x = jax.random.normal(jax.random.key(1), (2, 3, 5))[0], jax.random.normal(jax.random.key(2), (3, 4))
    dense = {
        "of_input": {"kernel": jax.random.normal(jax.random.key(3), (4, 15)), "bias": jnp.zeros(15)},
        "of_hidden": {"kernel": jax.random.normal(jax.random.key(4), (5, 15)), "bias": jnp.zeros(15)},
    }
    ours = cell.apply({"params": dense}, hidden, x, method=lambda cell, hidden, x: cell.advance(hidden, cell.inputs(x)))
    theirs = nn.GRUCell(5)
    params = theirs.init(jax.random.key(0), hidden, x)["params"]
    for name, gate in zip("rzn", range(3), strict=True):
        for kind, of in (("i", "of_input"), ("h", "of_hidden")):
            kernel = dense[of]["kernel"][:, 5 * gate : 5 * gate + 5]
            params[kind + name] = {"kernel": kernel} | ({"bias": jnp.zeros(5)} if "bias" in params[kind + name] else {})
    np.testing.assert_allclose(ours, theirs.apply({"params": params}, hidden, x)[0], rtol=1e-5, atol=1e-6)


def test_the_linear_recurrence_is_a_weighted_mean_of_what_it_saw():
    cell = recurrent.MinGRU(1, jax.lax.dot_general)
    kernel = jnp.array([[0.0, 1.0]])  # z does not depend on x, and the candidate is x
    params = {"params": {"of_input": {"kernel": kernel, "bias": jnp.array([np.log(3.0), 0.0])}}}  # z = 3/4
    hidden = jnp.zeros(1)
    for x in (1.0, 2.0, 4.0):
        hidden = cell.apply(
            params, hidden, jnp.array([x]), method=lambda cell, hidden, x: cell.advance(hidden, cell.inputs(x))
        )
    assert float(hidden[0]) == pytest.approx(0.25 * (4.0 + 0.75 * 2.0 + 0.75**2 * 1.0))


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_give_what_single_steps_gave(kind):
    agent = agent_of(kind)
    _, state, rollout = lived(agent)
    assert bool((rollout.terminated | rollout.truncated).any())  # an episode ends within the rollout
    whole = agent.networks.unrolled
    log_prob = whole.actor(state.params, rollout.obs).log_prob(rollout.action)
    np.testing.assert_allclose(log_prob, rollout.log_prob, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(whole.critic(state.params, rollout.obs), rollout.critic, rtol=1e-4, atol=1e-6)


def test_memory_begins_with_an_episode_and_depends_on_its_steps_alone():
    agent = agent_of()
    _, state, rollout = lived(agent)
    done = np.asarray(rollout.terminated | rollout.truncated)
    starts = np.asarray(rollout.obs.starts)
    assert np.array_equal(starts[1:], done[:-1])
    for hidden in rollout.obs.hidden.values():
        assert not np.asarray(hidden)[starts].any()
    step, env = np.argwhere(done[:-1])[0] + (1, 0)  # an episode starts here

    def last(obs):
        outputs = agent.networks.unrolled.critic(state.params, rollout.obs._replace(obs=obs))
        return outputs[-1, env].sum()

    influence = np.abs(jax.grad(last)(rollout.obs.obs)).sum(-1)
    assert not influence[:step, env].any()
    assert (influence[step:, env] > 0).all()
    assert not np.delete(influence, env, axis=1).any()


def test_a_truncated_episode_is_valued_at_its_last_state_with_the_memory_of_its_steps():
    agent = agent_of(env="CartPole-v1")
    objective = lo.load("ppo")
    params = agent.env.default_params.replace(max_steps_in_episode=jnp.int32(5))
    task = agent.task(params, 100 * agent.config.steps_per_update)
    state = agent.init(task, jax.random.key(0))
    keys = list(jax.random.split(jax.random.key(1), 3))
    _, rollout = agent.rollout(objective, task, state, keys)
    assert bool(rollout.truncated[4].all())
    obs, env_state = state.env.obs, state.env.state
    for t in range(5):  # the same steps, one after another
        step_keys = jax.random.split(keys[0], (agent.config.num_steps, agent.config.num_envs))[t]
        after, env_state, *_ = jax.vmap(agent.env.step_env, in_axes=(0, 0, 0, None))(
            step_keys, env_state, rollout.action[t], params
        )
        obs = agent.networks.follow(state.params, obs, after)
    value = agent.networks.critic(state.params, obs)
    np.testing.assert_allclose(rollout.next_critic[4], value, rtol=1e-5, atol=1e-6)


def test_sequences_are_cut_in_order():
    x = jnp.arange(4 * 2).reshape(4, 2)  # step t of environment b is 2 t + b
    assert recurrent.sequences(x, 2).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert recurrent.sequences(x, 4).tolist() == x.tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", ["ppo", "ta_lpo", "lpg"])
def test_objectives_train_it_unchanged(kind, objective):
    agent = agent_of(kind, objective=objective, sequence=4)
    _, state, _ = lived(agent, objective)
    for leaf in jax.tree.leaves(state.params):
        assert bool(jnp.isfinite(leaf).all())
    start = agent.networks.init(jax.random.split(jax.random.key(0), 3)[0])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, start)
    assert any(jax.tree.leaves(moved["actor"]))


def test_networks_that_are_clipped_apart_learn_sequences_too():
    agent = agent_of(clip="separate")
    _, state, _ = lived(agent)
    assert bool(jnp.isfinite(ravel_pytree(state.params)[0]).all())


def test_an_agent_is_evaluated_with_its_memory():
    agent = agent_of()
    task, state, _ = lived(agent)
    returns = agent.evaluate(task, state, jax.random.key(2), num_episodes=3)
    assert returns.shape == (3,)
    assert bool((returns >= 1).all())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sequence": 3}, r"^sequence must divide num_steps = 8, the steps of a rollout, and is 3\."),
        ({"num_minibatches": 8}, r"^num_minibatches must divide the sequences of a rollout, .* = 4, because"),
        ({"network": "mlp", "sequence": 4}, r"^sequence is of recurrent networks, and network is 'mlp'"),
        ({"network": "lstm"}, r"^network must be one of auto, mlp, cnn, impala, table, gru, mingru, and is 'lstm'\."),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(CONFIG, **changes)


def test_numbered_states_are_refused():
    with pytest.raises(ValueError, match=r"^States that are numbered are looked up"):
        agent_of(env="gridworld/dense", objective="lpg")


def test_devices_do_not_share_one_recurrent_agent():
    assert agent_of().useful_shards(2) == 1


def test_the_command_takes_it():
    result = discover.train("ppo", "CartPole-v1", total_steps=2 * 32, num_seeds=2, agent=CONFIG)
    assert result.returns.shape[0] == 2
    assert isinstance(result.state.env.obs, Recalled)


TINY = dict(
    envs=("CartPole-v1",),
    total_steps=64,
    generations=2,
    evaluation_seeds=2,
    agent=CONFIG,
    search=discover.EvolutionConfig(population=4),
)


def test_a_search_for_a_drift_runs_on_it(tmp_path):
    result = discover.meta_train(discover.Recipe(**TINY), tmp_path / "run")
    assert [row["generation"] for row in result.rows] == [0, 1, 2]
    discover.meta_train(discover.Recipe(**TINY | {"generations": 1}), tmp_path / "short")
    resumed = discover.meta_train(discover.Recipe(**TINY), tmp_path / "short")
    assert resumed.rows[2]["fitness"] == result.rows[2]["fitness"]


@pytest.mark.parametrize("search", [discover.MetaGradConfig(members=2), discover.WholeLifeConfig(lives=2)])
def test_meta_gradients_are_refused(tmp_path, search):
    recipe = discover.Recipe(**TINY | {"search": search})
    with pytest.raises(
        ValueError, match=r"^a meta-gradient goes through single steps of the networks, and agent.network"
    ):
        discover.meta_train(recipe, tmp_path / "run")
    assert not (tmp_path / "run/recipe.json").exists()
