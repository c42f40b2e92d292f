"""What an agent makes of a rollout: its gradient steps are optax's, on any number of devices."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import discover
import envs
import learned_objectives as lo
from discover.agents.agent import Agent, AgentConfig
from discover.agents.learning import permutations
from discover.agents.objectives import as_arrays
from discover.devices import parallel, team
from discover.devices.plan import CPU

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiling is nearly all the cost

# A norm so low that every gradient is clipped, and steps large enough to see.
CONFIG = AgentConfig(
    num_envs=8,
    num_steps=8,
    num_epochs=3,
    num_minibatches=1,
    hidden=(8,),
    learning_rate=0.05,
    anneal=False,
    max_grad_norm=1e-2,
)


def experience(config, objective):
    """(an agent at birth, its state, its progress, what it met, what that should teach)."""
    env, env_params = envs.make("CartPole-v1")
    agent = Agent.fit(env, config, objective)
    task = agent.task(env_params, 10_000)

    @jit
    def live():
        state = agent.init(task, jax.random.key(0))
        _, rollout = agent.rollout(objective, task, state, list(jax.random.split(jax.random.key(1), 3)))
        progress = agent.progress(task, state)
        return state, progress, rollout, objective.targets(rollout, progress)

    return agent, *live()


def optax_params(agent, objective, state, progress, rollout, targets):
    """The parameters after as many steps by optax alone, on the loss of both networks."""
    c = agent.config
    scale = optax.scale_by_adam(c.adam_b1, c.adam_b2, c.adam_eps) if c.optimizer == "adam" else optax.identity()
    one = optax.chain(optax.clip_by_global_norm(c.max_grad_norm), scale, optax.scale(-c.learning_rate))
    labels = {"actor": "actor", "critic": "critic"}
    optimizer = one if c.clip == "joint" else optax.multi_transform({"actor": one, "critic": one}, labels)

    def loss(params):
        policy = agent.networks.actor(params, rollout.obs)
        critic = agent.networks.critic(params, rollout.obs)
        outputs = lo.Outputs(policy.log_prob(rollout.action), policy.entropy(), critic)
        return objective.loss(outputs, rollout, targets, progress)[0]

    def step(_, carry):
        updates, opt_state = optimizer.update(jax.grad(loss)(carry[0]), carry[1], carry[0])
        return optax.apply_updates(carry[0], updates), opt_state

    descend = jit(lambda params: jax.lax.fori_loop(0, c.num_epochs, step, (params, optimizer.init(params)))[0])
    return descend(state.params)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("clip", ["joint", "separate"])
def test_gradient_steps_are_those_of_optax(clip, optimizer):
    objective = as_arrays(lo.Mirror(value_coef=0.01))
    config = dataclasses.replace(CONFIG, clip=clip, optimizer=optimizer)
    config = dataclasses.replace(config, learning_rate={"adam": 0.05, "sgd": 1.0}[optimizer])
    agent, state, progress, rollout, targets = experience(config, objective)
    expected = optax_params(agent, objective, state, progress, rollout, targets)
    params, _, metrics = jit(
        lambda s: agent.learner.learn(
            objective, progress, s.params, s.opt_state, (rollout, targets), config.learning_rate, s.key
        )
    )(state)
    steps, expected = (jax.tree.map(jnp.subtract, after, state.params) for after in (params, expected))
    for step, by_optax in zip(jax.tree.leaves(steps), jax.tree.leaves(expected), strict=True):
        assert jnp.abs(by_optax).max() > 1e-5
        np.testing.assert_allclose(step, by_optax, rtol=1e-2, atol=1e-3 * jnp.abs(by_optax).max())
    assert {name: x.shape for name, x in metrics.items()} == dict.fromkeys(
        ("policy_loss", "value_loss", "entropy", "kl"), (config.num_epochs,)
    )


def test_clipping_apart_is_something_else():
    objective = as_arrays(lo.Mirror())
    together, apart = (
        optax_params(
            *[(made := experience(dataclasses.replace(CONFIG, clip=clip, optimizer="sgd"), objective))[0], objective],
            *made[1:],
        )
        for clip in ("joint", "separate")
    )
    assert not np.allclose(*(jax.tree.leaves(p["actor"])[0] for p in (together, apart)), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rows_too", [False, True])
def test_networks_apart_on_several_devices_are_those_of_one(rows_too):
    """Whether devices share the environments, or each step all of them, and one of three has no network to train."""
    plan = dataclasses.replace(CPU, cache_bytes=0 if rows_too else CPU.cache_bytes)
    env, env_params = envs.make("CartPole-v1")
    config = dataclasses.replace(CONFIG, clip="separate", num_minibatches=2, normalise_obs=True, normalise_reward=True)
    objective = as_arrays(lo.Mirror())
    alone = Agent.fit(env, config, objective, plan)
    task = alone.task(env_params, config.steps_per_update * 2)

    def life(shared, key):
        agent = dataclasses.replace(alone, shards=shared.size)
        return jax.lax.fori_loop(0, 2, lambda _, s: agent.update(objective, task, s)[0], agent.init(task, key))

    def lived(shards):
        program = parallel.sharded_map(life, chunk=1, team=shards)
        return parallel.unwrap_keys(program(jnp.zeros(shards), jax.random.split(jax.random.key(0), 1)))

    assert alone.worth_sharing == rows_too
    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, lived(2 if rows_too else 3), lived(1))


def test_tasks_are_divided_bit_for_bit():
    odd = jnp.float32([-0.0, jnp.nan, jnp.inf, 1e-45, 3.5])
    tasks = [
        lambda: ({"x": odd, "n": jnp.int32(-7)}, jnp.ones((2, 3))),
        lambda: ({"y": jnp.arange(6, dtype=jnp.int8).reshape(2, 3)}, jnp.zeros(())),
        lambda: ((), {"half": jnp.bfloat16(0.1), "true": jnp.bool_([True, False])}),
    ]
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), (team.AXIS,))
    spec = jax.sharding.PartitionSpec()
    shared = jax.shard_map(lambda: team.run_split(tasks, 4), mesh=mesh, in_specs=(), out_specs=spec, check_vma=False)
    alone, together = team.run_split(tasks, 1), jax.jit(shared)()
    assert jax.tree.structure(alone) == jax.tree.structure(together)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_tasks_need_a_device_each():
    with pytest.raises(ValueError, match="3 tasks cannot be divided among 2 devices"):
        team.run_split([tuple, tuple, tuple], 2)


@pytest.mark.slow
@pytest.mark.parametrize("clip", ["joint", "separate"])
def test_the_next_direction_is_that_of_optax(clip):
    config = dataclasses.replace(CONFIG, clip=clip, max_grad_norm=1e-3)  # where Adam's epsilon matters
    agent, state, *_ = experience(config, as_arrays(lo.Mirror()))
    grads = jax.tree.map(lambda x: x + 0.1, state.params)
    one = optax.chain(optax.clip_by_global_norm(1e-3), optax.scale_by_adam(eps=agent.config.adam_eps))
    labels = {"actor": "actor", "critic": "critic"}
    adam = one if clip == "joint" else optax.multi_transform({"actor": one, "critic": one}, labels)
    expected, _ = adam.update(grads, adam.init(state.params))
    found = agent.learner.direction(grads, state.opt_state, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


class Tied(lo.Mirror):
    """A loss that is of both networks at once."""

    def loss(self, outputs, rollout, targets, progress):
        return (outputs.log_prob * outputs.critic[..., 0]).mean(), {}


def test_a_loss_of_both_networks_at_once_cannot_be_clipped_apart():
    assert lo.Mirror().separable
    assert not Tied().separable
    with pytest.raises(ValueError, match=r"Tied has a loss of its own.*choose clip='together'"):
        discover.train(Tied(), agent=dataclasses.replace(CONFIG, clip="separate"), total_steps=1000)
    agent, state, *rest = experience(dataclasses.replace(CONFIG, clip="separate"), lo.Mirror())
    with pytest.raises(ValueError, match="Tied has a loss of its own"):  # of an agent that was not fitted to it, too
        agent.learner.learn(Tied(), rest[0], state.params, state.opt_state, tuple(rest[1:]), 0.1, state.key)


@pytest.mark.slow
def test_a_single_life_clipped_apart_has_two_devices(monkeypatch):
    teams, spread = [], parallel.sharded_map
    monkeypatch.setattr(
        parallel, "sharded_map", lambda *args, **kwargs: teams.append(kwargs["team"]) or spread(*args, **kwargs)
    )
    kwargs = {"total_steps": 512, "num_evals": 1, "agent": dataclasses.replace(CONFIG, clip="separate")}
    one, three = (discover.train("ppo", num_seeds=n, **kwargs) for n in (1, 3))
    assert teams == [2, 2, 1, 1]  # birth and life
    assert one.agent == three.agent  # to go on with, on one device
    np.testing.assert_allclose(one.returns, three.returns[:1], rtol=1e-3)


def test_permutations_are_permutations():
    for size in (1, 6, 512, 70_000):
        order = np.asarray(permutations(jax.random.key(0), 3, size))
        np.testing.assert_array_equal(np.sort(order), np.tile(np.arange(size), (3, 1)))
    assert not (order[0] == order[1]).all()


def test_permutations_are_fair():
    order = jax.vmap(lambda k: permutations(k, 1, 4)[0])(jax.random.split(jax.random.key(0), 24_000))
    _, counts = np.unique(np.asarray(order), axis=0, return_counts=True)
    assert len(counts) == 24
    np.testing.assert_allclose(counts, 1000, atol=150)  # 4.8 standard deviations of a binomial
