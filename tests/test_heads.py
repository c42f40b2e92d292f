"""Agents with heads, target networks and objectives that have a state: a small objective of our own, and Disco."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import discover
import envs
import learned_objectives as lo
from discover.agents.agent import Agent, AgentConfig
from discover.agents.networks import heads_width
from discover.agents.objectives import as_arrays, checked
from discover.agents.setups import warn_if_far
from discover.console import Advice
from discover.devices import parallel
from discover.searches.curriculum import AssignedTask
from discover.searches.metagrad import MetaGrad, MetaGradConfig
from learned_objectives.disco import SHAPES

ROOT = Path(__file__).parents[1]
FOLDER = next((p for p in (ROOT / "shared" / "disco103", ROOT.parent / "shared" / "disco103") if p.is_dir()), None)
published = pytest.mark.skipif(FOLDER is None, reason="the published weights are in no folder shared/disco103 here")
SMALL = AgentConfig(num_envs=4, num_steps=8, num_epochs=1, num_minibatches=1, hidden=(16,), learning_rate=1e-2)


class Counting(lo.Objective):
    """Q-learning on a head of its own, with a count of rollouts and the target network's values."""

    weight: float = 1.0

    @property
    def critic_width(self):
        return 0

    @property
    def target_share(self):
        return 0.75

    def heads(self, num_actions):
        return {"q": (num_actions,), "pairs": (num_actions, num_actions)}

    @staticmethod
    def init_state():
        return {"rollouts": jnp.float32(0.0)}

    def observe(self, rollout, state, progress):
        after = jnp.where(rollout.terminated, 0.0, rollout.next_critic["target"]["q"].max(-1))
        return rollout.reward + 0.9 * after, {"rollouts": state["rollouts"] + 1.0}

    def loss(self, outputs, rollout, targets, progress):
        q = jnp.take_along_axis(outputs.critic["q"], rollout.action[..., None], -1)[..., 0]
        value_loss = ((q - targets) ** 2).mean()
        follow = -(jax.nn.softmax(jax.lax.stop_gradient(q)) * outputs.log_prob).mean()
        return self.weight * value_loss + follow + 1e-3 * (outputs.critic["pairs"] ** 2).mean(), {
            "value_loss": value_loss
        }


def disco_at_random(seed=0):
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    return lo.Disco(
        **{
            name: 0.5 * jax.random.normal(key, shape) / shape[0] ** 0.5 if name.endswith("_w") else jnp.full(shape, 0.1)
            for key, (name, shape) in zip(keys, SHAPES.items(), strict=True)
        }
    )


def born(name, objective, config=SMALL):
    """(agent, task, state)."""
    env, env_params = envs.make(name)
    agent = Agent.fit(env, config, objective)
    task = agent.task(env_params, 100 * config.steps_per_update)
    return agent, task, jax.jit(agent.init)(task, jax.random.key(0))


@pytest.mark.parametrize("name", ["ppo", "lpg"])
def test_objectives_without_heads_or_a_state_add_nothing_to_an_agent(name):
    objective = lo.load(name)
    agent, task, state = born("CartPole-v1", objective)
    assert (agent.heads, agent.target_share, state.target, state.memory) == (None, None, None, ())
    assert isinstance(jax.eval_shape(agent.networks.critic, state.params, state.env.obs), jax.ShapeDtypeStruct)
    marker = object()
    targets, after = objective.observe(rollout_of(agent, objective, task, state), marker, lo.Progress(0.0, 1.0))
    assert after is marker
    assert jax.tree.leaves(targets)


def rollout_of(agent, objective, task, state):
    keys = list(jax.random.split(jax.random.key(1), 3))
    return jax.jit(lambda state: agent.rollout(objective, task, state, keys)[1])(state)


@pytest.mark.parametrize("name", ["CartPole-v1", "gridworld/small"])
def test_heads_have_their_names_and_shapes(name):
    agent, task, state = born(name, Counting())
    actions = agent.env.action_space(agent.env.default_params).n
    rollout = rollout_of(agent, Counting(), task, state)
    own = {"logits": (8, 4, actions), "q": (8, 4, actions), "pairs": (8, 4, actions, actions)}
    for heads in (rollout.critic, rollout.next_critic):
        assert {k: v.shape for k, v in heads.items() if k != "target"} == own
        assert {k: v.shape for k, v in heads["target"].items()} == own
    assert heads_width(agent.heads) == agent.critic_width == actions + actions**2
    policy = agent.networks.actor(state.params, rollout.obs)
    np.testing.assert_allclose(rollout.critic["logits"], policy.logits, rtol=1e-5, atol=1e-6)


def test_successors_are_true_ones_and_after_a_termination_the_next_episodes_first():
    config = dataclasses.replace(SMALL, num_steps=64)
    agent, task, state = born("CartPole-v1", Counting(), config)
    rollout = rollout_of(agent, Counting(), task, state)
    assert rollout.terminated[:-1].any()
    assert not rollout.truncated.any()
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(y[:-1], x[1:]), rollout.critic, rollout.next_critic)


def test_successors_of_truncated_steps_are_not_the_next_start():
    agent, task, state = born("CartPole-v1", Counting())
    task = task.replace(env_params=task.env_params.replace(max_steps_in_episode=5))
    rollout = rollout_of(agent, Counting(), task, state)
    cut = np.asarray(rollout.truncated & ~rollout.terminated)[:-1]
    assert cut.any()
    q, after = np.asarray(rollout.critic["q"]), np.asarray(rollout.next_critic["q"])
    assert (after[:-1][cut] != q[1:][cut]).all(-1).all()
    assert (after[:-1][cut] != 0).all()
    np.testing.assert_array_equal(after[:-1][~cut], q[1:][~cut])


def test_the_target_network_follows_and_the_state_is_carried():
    objective = Counting()
    agent, task, first = born("CartPole-v1", objective)
    jax.tree.map(np.testing.assert_array_equal, first.target, first.params)
    update = jax.jit(lambda s: agent.update(objective, task, s)[0])
    second = update(first)
    third = update(second)
    assert (first.memory["rollouts"], second.memory["rollouts"], third.memory["rollouts"]) == (0, 1, 2)
    for before, after in ((first, second), (second, third)):
        expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, before.target, after.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after.target, expected)
    # Flattened and rebuilt, as a checkpoint does, it goes on as it would have.
    leaves, structure = jax.tree.flatten(second)
    again = update(jax.tree.unflatten(structure, leaves))
    assert all(map(np.array_equal, jax.tree.leaves(again.params), jax.tree.leaves(third.params)))


def test_after_its_life_an_agent_and_its_state_stay_as_they_are():
    objective = Counting()
    agent, task, state = born("CartPole-v1", objective)
    task = task.replace(lifetime=jnp.float32(agent.config.steps_per_update))
    update = jax.jit(lambda s: agent.update(objective, task, s)[0])
    state = update(state)
    later = update(state)
    assert later.memory["rollouts"] == 1
    jax.tree.map(np.testing.assert_array_equal, (later.params, later.target), (state.params, state.target))


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_life_with_heads_on_several_devices_is_that_of_one(epochs):
    config = dataclasses.replace(SMALL, num_epochs=epochs, num_minibatches=epochs)
    env, env_params = envs.make("CartPole-v1")
    objective = as_arrays(Counting())

    def lived(shards):
        agent = dataclasses.replace(Agent.fit(env, config, objective), shards=shards)
        task = agent.task(env_params, 3 * config.steps_per_update)

        def life(shared, key):
            return agent.train(*shared, key, num_updates=3)[0]

        run = parallel.sharded_map(life, chunk=1, team=shards)
        return run((objective, task), jax.random.split(jax.random.key(0), 1))

    one, shared = lived(1), lived(2)
    for part in ("params", "target", "memory"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
            getattr(shared, part),
            getattr(one, part),
        )


def test_what_an_agent_with_heads_cannot_be():
    with pytest.raises(
        ValueError, match=r"^Disco reads the probability of an action, and the actions of Pendulum-v1 are cont"
    ):
        discover.train(disco_at_random(), "Pendulum-v1", total_steps=10_000)
    env, _ = envs.make("Pendulum-v1")
    with pytest.raises(
        ValueError, match=r"^Counting has outputs for every action of one Discrete space, and the actions of Pe"
    ):
        Agent.fit(env, SMALL, Counting())
    env, _ = envs.make("CartPole-v1")
    with pytest.raises(ValueError, match=r"^Disco has a loss of its own, .*choose clip='together'"):
        Agent.fit(env, dataclasses.replace(SMALL, clip="separate"), disco_at_random())


class Bound(Counting):
    def init_state(self):
        return {"rollouts": jnp.float32(0.0)}


def test_a_state_at_birth_depends_on_no_leaf():
    env, _ = envs.make("CartPole-v1")
    with pytest.raises(
        ValueError, match=r"^init_state of Bound must be a static method without arguments.*staticmethod"
    ):
        Agent.fit(env, SMALL, Bound())


def test_an_objective_with_a_state_is_a_plug():
    assert isinstance(checked(Counting(), "Counting"), Counting)


def test_agents_of_one_kind_are_equal_and_share_their_programs():
    env, _ = envs.make("CartPole-v1")
    agents = [Agent.fit(env, SMALL, disco_at_random(seed)) for seed in (0, 1)]
    assert agents[0] == agents[1]
    assert hash(agents[0]) == hash(agents[1])


def test_disco_trains_an_agent_and_remembers():
    result = discover.train(disco_at_random(), "CartPole-v1", total_steps=5 * 32, num_seeds=2, agent=SMALL)
    assert np.isfinite(result.returns[:, -1]).all()
    memory = result.state.memory
    assert isinstance(memory, lo.DiscoState)
    assert (memory.hidden != 0).all()
    np.testing.assert_allclose(memory.advantage.weight, 1 - 0.99**5, rtol=1e-4)
    assert not np.array_equal(memory.hidden[0], memory.hidden[1])


def test_meta_gradients_go_through_a_life_with_disco():
    """Of three updates, in every array that has a part in what the agent does."""
    rule = as_arrays(disco_at_random())
    agent, task, state = born("CartPole-v1", rule)
    obs = jax.random.normal(jax.random.key(5), (16, 4))

    def outcome(rule):
        after = state
        for _ in range(3):
            after, _, _ = agent.step(rule, task, after)
        return (agent.networks.actor(after.params, obs).log_probs[:, 0]).sum()

    gradient = jax.jit(jax.grad(outcome))(rule)
    for name in SHAPES:
        slope = np.asarray(getattr(gradient, name))
        assert np.isfinite(slope).all(), name
        assert (slope != 0).any(), name


@pytest.mark.parametrize("estimator", ["debiased", "bootstrapped"])
def test_a_search_by_meta_gradients_takes_disco(estimator):
    rule = as_arrays(disco_at_random())
    agent, task, _ = born("CartPole-v1", rule)
    meta = MetaGrad(MetaGradConfig(members=1, chunk=1, window=2, estimator=estimator), agent)
    drawn = AssignedTask(task, jnp.int32(-1), jnp.int32(0), jnp.float32(jnp.nan), jnp.float32(-jnp.inf))
    member = meta.birth(drawn, jax.random.key(0), jnp.int32(10))
    gradient, (after, shown) = jax.jit(jax.grad(meta.window, has_aux=True))(rule, member)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    assert (gradient.core_w != 0).any()
    assert not shown["diverged"]
    assert (after.state.memory.hidden != member.state.memory.hidden).any()


def test_settings_far_from_the_search_of_disco_are_named():
    with pytest.warns(Advice, match="This Disco may not learn with these settings: it takes one gradient step"):
        warn_if_far(disco_at_random(), AgentConfig())
    warn_if_far(disco_at_random(), SMALL)


def test_no_element_of_a_step_is_longer_than_max_update_times_the_rate():
    config = dataclasses.replace(SMALL, max_update=0.5, anneal=False)
    moved = {}
    for name, settings in {"clipped": config, "free": dataclasses.replace(config, max_update=None)}.items():
        agent, task, state = born("CartPole-v1", Counting(), settings)
        after = jax.jit(lambda s, a=agent, t=task: a.update(Counting(), t, s)[0])(state)
        steps = jax.tree.map(lambda new, old: jnp.abs(new - old).max(), after.params, state.params)
        moved[name] = max(jax.tree.leaves(steps)) / settings.learning_rate
    assert moved["clipped"] == pytest.approx(0.5, rel=1e-3)
    assert moved["free"] == pytest.approx(1.0, rel=1e-2)  # Adam's first step has length 1


@pytest.mark.parametrize("settings", [{"max_update": 0.0}, {"max_update": 1.0, "optimizer": "sgd"}])
def test_max_update_is_checked(settings):
    with pytest.raises(ValueError, match=r"^max_update (must be positive, or None, and is 0.0|is of Adam's direction)"):
        AgentConfig(**settings)


@published
@pytest.mark.skipif("DISCOVER_LONG_TESTS" not in os.environ, reason="two minutes: an agent learns Catch")
def test_disco103_learns_catch():
    """Its authors' agent catches 95 % at update 350 and 100 % at 400, on batches of 64 trajectories of 29 steps."""
    config = AgentConfig(
        num_envs=64,
        num_steps=29,
        num_epochs=1,
        num_minibatches=1,
        learning_rate=1e-2,
        anneal=False,
        max_grad_norm=1e6,
        max_update=1.0,
    )
    rule = lo.load_disco103(FOLDER / "disco_103.npz")
    result = discover.train(rule, "Catch-bsuite", total_steps=450 * 64 * 29, num_evals=9, num_seeds=1, agent=config)
    assert result.returns[0, -1] > 0.9  # +1 caught, -1 missed
