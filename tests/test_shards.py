"""A life on several devices is the life on one: each runs its part of the environments, and of every minibatch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import discover
import envs
import learned_objectives as lo
from discover.agents.agent import Agent, AgentConfig
from discover.agents.objectives import as_arrays
from discover.devices import parallel, team

pytestmark = pytest.mark.slow

MLP = AgentConfig(num_envs=8, num_steps=16, num_epochs=2, num_minibatches=2, hidden=(16, 16), learning_rate=1e-2)
SETUPS = {
    "CartPole-v1": MLP,
    # On two devices 410 kB of frames each, more than `team.LARGE`.
    "Breakout-MinAtar": dataclasses.replace(MLP, network="mlp", activation="relu", num_steps=64),
    "Pendulum-v1": dataclasses.replace(MLP, normalise_obs=True, normalise_reward=True),
    "gridworld/small": discover.usual_setup("gridworld/small").agent,  # tables, and the whole rollout in one minibatch
}


def lived(name, shards, num_updates):
    env, env_params = envs.make(name)
    config = SETUPS[name]
    objective = as_arrays(lo.Mirror(drift=lo.Clip()))
    agent = dataclasses.replace(Agent.fit(env, config, objective), shards=shards)
    task = agent.task(env_params, config.steps_per_update * num_updates)

    def life(shared, key):
        objective, task = shared
        return agent.train(objective, task, key, num_updates=num_updates)

    return parallel.sharded_map(life, chunk=1, team=shards)((objective, task), jax.random.split(jax.random.key(0), 1))


@pytest.mark.parametrize("name", SETUPS)
def test_a_shared_life_is_the_life_of_one_device(name):
    one, returned = lived(name, 1, 3)
    shared, together = lived(name, 4 if name == "CartPole-v1" else 2, 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), shared.params, one.params)
    np.testing.assert_allclose(together, returned, rtol=1e-4)
    assert jax.tree.map(jnp.shape, shared) == jax.tree.map(jnp.shape, one)


def test_rows_by_device():
    """Three steps of four environments on two devices, numbered as 10 t + b."""
    x = 10 * jnp.arange(3)[:, None] + jnp.arange(4)
    assert team.by_device(x, 2).tolist() == [0, 1, 10, 11, 20, 21, 2, 3, 12, 13, 22, 23]
    assert team.by_device(x, 1).tolist() == x.reshape(-1).tolist()
    places = team.row_by_device(3, 4, 2)
    assert places.tolist() == [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]


def test_devices_gather_what_each_owns():
    x = {"a": jnp.arange(24.0).reshape(2, 12), "b": jnp.arange(48).reshape(4, 12), "c": jnp.ones((1, 12, 2), bool)}
    x["empty"] = jnp.zeros((1, 12, 0))  # as Brax's mjx has
    x["large"] = jnp.arange(6.0 * team.UNPACKED_BYTES).reshape(2, 12, -1)

    def both(x):
        return team.all_gather(team.local_shard(x, 4, 1), 4, 1)

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(1, 4), ("lives", team.AXIS))
    spec = jax.sharding.PartitionSpec()
    back = jax.jit(jax.shard_map(both, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))(x)
    jax.tree.map(np.testing.assert_array_equal, back, x)


def test_only_a_life_that_is_worth_it_is_shared():
    def shards(name, num_seeds, **kwargs):
        env, _ = envs.make(name)
        config = dataclasses.replace(discover.usual_setup(name).agent, **kwargs)
        return Agent(env, config).useful_shards(max(4 // num_seeds, 1))

    assert shards("CartPole-v1", 1) == 1  # too little work between two synchronisations
    assert shards("Breakout-MinAtar", 1) == 4
    assert shards("Breakout-MinAtar", 2) == 2
    assert shards("Breakout-MinAtar", 3) == 1
    assert shards("Breakout-MinAtar", 8) == 1
    assert shards("Breakout-MinAtar", 1, num_envs=6, num_steps=1024, num_minibatches=4) == 3  # a divisor of 6
    assert shards("brax/inverted_pendulum", 1) == 4


def test_train_shares_a_life_unless_told_how(monkeypatch):
    teams, spread = [], parallel.sharded_map
    monkeypatch.setattr(
        parallel, "sharded_map", lambda *args, **kwargs: teams.append(kwargs["team"]) or spread(*args, **kwargs)
    )
    kwargs = {"env": "Breakout-MinAtar", "total_steps": 2 * 8192, "num_seeds": 1, "num_evals": 1}
    kwargs["agent"] = dataclasses.replace(discover.usual_setup("Breakout-MinAtar").agent, num_epochs=1, hidden=(8,))
    shared = discover.train("ppo", **kwargs)
    alone = discover.train("ppo", chunk=1, **kwargs)
    assert teams == [4, 4, 1, 1]  # birth and life
    np.testing.assert_allclose(shared.returns, alone.returns, rtol=1e-2)
    assert shared.agent == alone.agent  # to go on with, on one device


def test_train_uses_the_devices_it_is_given():
    kwargs = {"env": "CartPole-v1", "total_steps": 1024, "num_seeds": 2, "num_evals": 1, "chunk": 1}
    usual = discover.train("ppo", **kwargs)
    chosen = discover.train("ppo", devices=jax.devices()[2:3], **kwargs)
    assert {d.id for d in jax.tree.leaves(chosen.state.params)[0].devices()} == {jax.devices()[2].id}
    np.testing.assert_array_equal(chosen.returns, usual.returns)


def test_rows_that_cannot_be_shared_are_refused():
    with pytest.raises(ValueError, match="5 rows cannot be shared evenly by 2 devices"):
        team.local_shard(jnp.zeros(5), 2)


def test_what_is_placed_compiles_nothing_again():
    program = parallel.sharded_map(lambda shared, x: x + shared, chunk=1)
    devices = parallel.devices_for(4)
    x = parallel.shard(jnp.arange(4.0), devices)
    program(jnp.float32(1), program(jnp.float32(1), x))
    assert program._cache_size() == 1
