"""The agent learns what can be known, bootstraps what it should, and stops when its life is over."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crash import LONG

import discover
import envs
import learned_objectives as lo
from discover.agents import rollout as ro
from discover.agents.agent import Agent, AgentConfig
from discover.agents.layers import orthogonalise
from discover.agents.learning import Learner
from discover.agents.networks import make_networks
from discover.agents.setups import usual_setup
from discover.devices.plan import CPU
from discover.evaluation.train import make_life

GAMMA = 0.9
SMALL = AgentConfig(num_envs=16, num_steps=32, num_epochs=4, num_minibatches=4, learning_rate=5e-3, hidden=(32, 32))
NORMALISED = dataclasses.replace(SMALL, normalise_obs=True)
LOSS = discover.LossConfig(gamma=GAMMA, entropy_coef=0.0)


# Compiling is most of this file's time: this halves it, and programs are made once for all tests, by agent.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
born = jit(Agent.init, static_argnums=0)
update = jit(Agent.update, static_argnums=0)


@partial(jit, static_argnames=("agent", "num_steps", "discount"))
def met(agent, task, state, *, num_steps=8, discount=0.99):
    """The environments after a rollout, and the rollout."""
    keys = jax.random.split(jax.random.key(1), 3)
    return ro.rollout(
        agent.env, task.env_params, agent.networks, state.params, state.env, keys,
        num_steps=num_steps, num_starts=num_steps, discount=discount,
    )  # fmt: skip


@cache
def solved(probe, steps=60_000):
    """(what training found, the trained agent's state) on a probe."""
    result = discover.train(
        "ppo", f"probe/{probe}", total_steps=steps, num_seeds=1, agent=SMALL, loss=LOSS, num_evals=4
    )
    return result, jax.tree.map(lambda x: x[0], result.state)


@pytest.mark.parametrize(
    "probe",
    [
        "discount",
        "truncation",
        *(pytest.param(p, marks=pytest.mark.slow) for p in ("constant", "observation", "termination", "image")),
    ],
)
def test_critic_finds_the_known_values(probe):
    result, state = solved(probe)
    _, rollout = met(result.agent, result.task, state, num_steps=16, discount=GAMMA)
    known = result.agent.env.value(rollout.obs, GAMMA)
    np.testing.assert_allclose(rollout.critic[..., 0], known, atol=0.05 * np.abs(known).max() + 0.05)


@pytest.mark.parametrize("probe", ["action", "observation_action", pytest.param("image", marks=pytest.mark.slow)])
def test_policy_finds_the_rewarded_action(probe):
    result, _ = solved(probe)
    assert result.returns[0, -1] > 0.95


@pytest.mark.slow
def test_gaussian_policy_finds_the_optimum():
    result, state = solved("continuous", steps=120_000)
    returns = result.agent.evaluate(result.task, state, jax.random.key(0), num_episodes=64, greedy=True)
    assert returns.mean() > -0.01  # -(a - 0.5 obs)^2, 0 at the optimum


def life(objective="ppo", env="CartPole-v1", config=SMALL, steps=2048):
    environment, params = envs.make(env)
    agent = Agent(environment, config)
    agent.networks  # it keeps them, and they must not be of a trace  # noqa: B018
    return agent, agent.task(params, steps), lo.load(objective)


@pytest.mark.slow
def test_unchanged_after_its_lifetime():
    agent, task, objective = life(config=NORMALISED)
    state = born(agent, task, jax.random.key(0))
    for _ in range(4):
        state, _ = update(agent, objective, task, state)
    after, _ = update(agent, objective, task, state)
    assert state.num_updates == 4
    same = jax.tree.map(lambda a, b: bool((a == b).all()), state, after)
    assert all(jax.tree.leaves(same))


def test_learning_rate_anneals_from_the_task_to_zero():
    agent, task, _objective = life()
    fractions = []
    state = born(agent, task, jax.random.key(0))
    for updates in range(5):
        state = state.replace(num_updates=jnp.int32(updates))
        fractions.append(float(agent.progress(task, state).fraction))
    assert fractions == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("name", ["ppo", *(["dpo", "mdpo"] if LONG else [])])  # test_mirror asks every drift
def test_one_gradient_step_per_rollout_is_a2c(name):
    config = AgentConfig(num_envs=4, num_steps=16, num_epochs=1, num_minibatches=1, hidden=(8,))
    agent, task, objective = life(name, config=config)
    state = born(agent, task, jax.random.key(0))
    mine, _ = update(agent, objective, task, state)
    a2c, _ = update(agent, lo.load("a2c"), task, state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), mine.params, a2c.params)


def test_truncation_bootstraps_from_the_true_last_state():
    agent, task, _ = life()
    task = task.replace(env_params=task.env_params.replace(max_steps_in_episode=np.int32(5)))
    state = born(agent, task, jax.random.key(0))
    _, rollout = met(agent, task, state)
    t, b = np.argwhere(np.asarray(rollout.truncated))[0]
    _, at = agent.env.reset_env(jax.random.key(0), task.env_params)
    x, x_dot, theta, theta_dot = rollout.obs[t, b]
    at = at.replace(x=x, x_dot=x_dot, theta=theta, theta_dot=theta_dot)
    successor, *_ = agent.env.step_env(jax.random.key(0), at, rollout.action[t, b], task.env_params)
    expected = agent.networks.critic(state.params, successor)
    np.testing.assert_allclose(rollout.next_critic[t, b], expected, rtol=1e-4, atol=1e-6)
    reset = agent.networks.critic(state.params, rollout.obs[t + 1, b])
    assert not np.allclose(rollout.next_critic[t, b], reset)


def test_next_critic_is_the_next_value_within_an_episode():
    agent, task, _ = life()
    _, r = met(agent, task, born(agent, task, jax.random.key(0)))
    going_on = ~np.asarray(r.terminated | r.truncated)[:-1]
    np.testing.assert_array_equal(r.next_critic[:-1][going_on], r.critic[1:][going_on])


@pytest.mark.slow
@pytest.mark.parametrize("small", [0, 64])
def test_nothing_follows_a_termination(small):
    plan = dataclasses.replace(CPU, late_values=small)  # whether last observations are valued in the loop, or after it
    agent, task, _ = life()
    task = task.replace(env_params=task.env_params.replace(max_steps_in_episode=np.int32(12)))
    state = agent.init(task, jax.random.key(0))
    _, r = ro.rollout(
        agent.env, task.env_params, agent.networks, state.params, state.env, jax.random.split(jax.random.key(7), 3),
        num_steps=32, num_starts=32, discount=0.99, plan=plan,
    )  # fmt: skip
    assert r.terminated.any()
    assert (r.truncated & ~r.terminated).any()
    np.testing.assert_array_equal(r.next_critic[..., 0] == 0, r.terminated)


@pytest.mark.slow
def test_statistics_of_the_rollout_are_those_the_policy_saw():
    agent, task, objective = life(config=NORMALISED)
    state, _ = update(agent, objective, task, born(agent, task, jax.random.key(0)))
    env, r = met(agent, task, state)
    now = agent.networks.actor(state.params, ro.normalised_obs(env, r.obs)).log_prob(r.action)
    np.testing.assert_allclose(now, r.log_prob, atol=1e-6)


def test_running_statistics_agree_with_numpy():
    x = np.random.default_rng(0).normal(3.0, 2.0, (5, 7, 4, 3)).astype(np.float32)
    stats = ro.RunningStats.create((3,))
    for chunk in x:
        stats = stats.update(jnp.asarray(chunk))
    flat = x.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(stats.mean, flat.mean(0), rtol=1e-4)
    np.testing.assert_allclose(stats.var, flat.var(0), rtol=1e-3)


def test_episode_returns_by_hand():
    episodes = ro.Episodes.create(2)
    assert jnp.isnan(episodes.mean_return())  # nothing is known before an episode ends
    reward, done = jnp.float32([[1, 1], [2, 5], [4, 1]]), jnp.array([[0, 0], [1, 0], [0, 0]], bool)
    episodes = episodes.update(reward, done)
    assert episodes.mean_return() == 3.0  # 1 + 2, the only one that ended
    later = episodes.forget().update(jnp.float32([[1, 1]]), jnp.array([[False, False]]))
    assert later.mean_return() == 3.0  # nothing ended since: the last one known
    assert later.update(jnp.float32([[1, 1]]), jnp.array([[False, True]])).mean_return() == 9.0  # 1+5+1+1+1


def test_episode_returns_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    episodes, running, last, ended = ro.Episodes.create(3), np.zeros(3), np.full(3, np.nan), []
    tracked = episodes.replace(best=jnp.float32(-jnp.inf))
    for _ in range(4):  # rollouts: in some an environment ends often, in some never
        reward, done = rng.integers(-3, 9, (7, 3)), rng.random((7, 3)) < rng.choice([0.0, 0.2, 0.9], 3)
        episodes, tracked = (e.update(jnp.float32(reward), jnp.asarray(done)) for e in (episodes, tracked))
        for r, d in zip(reward, done, strict=True):
            running = running + r
            ended += list(running[d])
            last, running = np.where(d, running, last), np.where(d, 0.0, running)
        np.testing.assert_array_equal(episodes.running, running)
        np.testing.assert_array_equal(episodes.finished, ~np.isnan(last))
        np.testing.assert_array_equal(episodes.last, np.nan_to_num(last))
        assert episodes.count == len(ended)
        assert episodes.total == sum(ended)
        assert tracked.best == max(ended, default=-np.inf)  # of every episode, not of the last ones
        assert episodes.best is None


@pytest.mark.slow
def test_reward_scale_is_the_deviation_of_the_discounted_return():
    config = dataclasses.replace(SMALL, normalise_reward=True)
    agent, task, _ = life(env="Pendulum-v1", config=config)
    state = born(agent, task, jax.random.key(0))
    _, scaled = met(agent, task, state, discount=GAMMA)
    plain = state.replace(env=state.env.replace(return_stats=None, discounted=None))
    _, raw = met(agent, task, plain, discount=GAMMA)
    discounted, total = [], np.zeros(SMALL.num_envs)
    for reward in np.asarray(raw.reward, np.float64):
        total = GAMMA * total + reward
        discounted.append(total)
    expected = np.asarray(raw.reward) / np.std(discounted)
    np.testing.assert_allclose(scaled.reward, expected, rtol=1e-3)


@pytest.mark.slow
def test_population_of_lives_is_the_loop_over_them():
    agent, task, _ = life(config=AgentConfig(num_envs=4, num_steps=16, num_minibatches=2, hidden=(8,)))
    population = lo.Mirror(drift=lo.DPO(jnp.float32([0.5, 2.0]), jnp.float32([0.3, 0.6])))

    def train(objective, task):
        return agent.train(objective, task, jax.random.key(3), num_updates=2)[0].params

    rates = task.replace(learning_rate=jnp.float32([1e-3, 1e-2]))
    axes = (0, jax.tree.map(lambda _: None, task).replace(learning_rate=0))
    together, one = jit(jax.vmap(train, in_axes=axes))(population, rates), jit(train)
    for i, rate in enumerate([1e-3, 1e-2]):
        alone = one(jax.tree.map(lambda x, i=i: x[i], population), task.replace(learning_rate=rate))
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-5), together, alone)


class Wide(lo.Objective):
    """Predicts five numbers a state, each the reward."""

    @property
    def critic_width(self):
        return 5

    def targets(self, rollout, progress):
        return rollout.reward[..., None] * jnp.ones(5)

    def loss(self, outputs, rollout, targets, progress):
        return ((outputs.critic - targets) ** 2).mean() - outputs.log_prob.mean() * 0.0, {}


def test_an_objective_with_a_wide_critic_fits_the_same_agent():
    result = discover.train(Wide(), "probe/constant", total_steps=30_000, num_seeds=1, agent=SMALL, num_evals=2)
    params = jax.tree.map(lambda x: x[0], result.state.params)
    predicted = result.agent.networks.critic(params, jnp.ones((1, 1)))
    np.testing.assert_allclose(predicted, np.ones((1, 5)), atol=0.05)


def test_levels_vmap():
    agent, task, objective = life(config=AgentConfig(num_envs=2, num_steps=8, num_minibatches=1))
    gravity = jnp.float32([9.8, 20.0])
    levels = jax.vmap(lambda g: task.env_params.replace(gravity=g))(gravity)

    def start_and_learn(params):
        level = task.replace(env_params=params)
        return agent.update(objective, level, agent.init(level, jax.random.key(0)))[0].env.obs

    obs = jit(jax.vmap(start_and_learn))(levels)
    assert obs.shape == (2, 2, 4)
    assert not np.allclose(obs[0], obs[1])


@pytest.mark.slow
def test_seed_number_i_is_the_same_among_any_number_of_seeds():
    small = AgentConfig(num_envs=4, num_steps=16, num_epochs=1, num_minibatches=1, hidden=(8,))
    arguments = {"env": "probe/observation_action", "total_steps": 256, "agent": small, "num_evals": 2}
    two = discover.train("ppo", num_seeds=2, **arguments)
    four = discover.train("ppo", num_seeds=4, **arguments)
    np.testing.assert_allclose(two.returns, four.returns[:2], rtol=0.05)
    assert not np.allclose(four.returns[0], four.returns[1])


@pytest.mark.parametrize("shape", [(4, 64), (64, 64), (64, 4), (3, 3, 4, 16), (400, 64)])
def test_initial_matrices_are_orthogonal(shape):
    params = {"kernel": jnp.full(shape, 2.0), "bias": jnp.zeros(shape[-1])}
    made = orthogonalise(params, jax.random.key(0))
    x = np.asarray(made["kernel"]).reshape(-1, shape[-1]) / 2.0
    assert not made["bias"].any()
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-3)


def test_no_factorisation_is_in_any_life():
    agent, task, objective = life()
    lives = jax.vmap(lambda key: agent.update(objective, task, agent.init(task, key))[0].params)
    text = jax.jit(lives).lower(jax.random.split(jax.random.key(0), 2)).as_text()
    assert not any(word in text.lower() for word in ("lapack", "householder", "cholesky"))


def test_actions_reach_the_bounds_and_no_further():
    env, params = envs.make("Pendulum-v1")
    networks = make_networks(
        env.observation_space(params), env.action_space(params),
        hidden=(4,), activation="tanh", kind="auto", critic_width=1,
    )  # fmt: skip
    np.testing.assert_allclose(networks.to_env(jnp.float32([-3.0])), [-2.0])
    np.testing.assert_allclose(networks.to_env(jnp.float32([0.25])), [0.5])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_minibatches": 7}, "num_minibatches must divide num_envs \\* num_steps = 512"),
        ({"num_envs": 0}, "num_envs must be at least 1, and is 0"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
        ({"activation": "gelu"}, "activation must be one of tanh, relu, swish"),
        ({"clip": "each"}, "clip must be joint or separate, and is 'each'"),
        ({"hidden": ()}, "hidden must name at least one layer"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(AgentConfig(), **changes)


@pytest.mark.parametrize(
    ("name", "in_turn"),
    [
        ("Breakout-MinAtar", True),
        ("CartPole-v1", False),
        ("gridworld/dense", False),
        *([("brax/ant", False)] if LONG else []),  # small as CartPole's, and ten seconds in the making
    ],
)
def test_agents_take_turns_where_one_fills_a_core(name, in_turn):
    agent, _, _ = make_life(name, usual_setup(name).agent, 100_000)
    x, y = jnp.arange(6.0).reshape(3, 2), jnp.arange(3.0)
    np.testing.assert_array_equal(agent.vmap(lambda x, y: x.sum() + y)(x, y), [1.0, 6.0, 11.0])
    assert ("scan" in str(jax.make_jaxpr(agent.vmap(lambda x: x.sum()))(x))) == in_turn


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sgd", lambda g: g),
        ("lion", np.sign),  # its momentum begins at zero
        ("rmsprop", lambda g: g / np.sqrt(0.001 * g**2 + 1e-5)),  # eps is added before the root
        ("adam", lambda g: g / (np.abs(g) + 1e-5)),
    ],
)
def test_the_first_step_of_an_optimizer_by_hand(name, expected):
    gradient = np.random.default_rng(0).normal(size=(3, 4))
    rule = Learner(None, dataclasses.replace(SMALL, optimizer=name)).optimizer
    params = {"kernel": jnp.zeros((3, 4))}
    direction, _ = rule.update({"kernel": jnp.float32(gradient)}, rule.init(params), params)
    np.testing.assert_allclose(direction["kernel"], expected(gradient), rtol=1e-3)


def test_muon_makes_the_step_of_a_matrix_orthogonal_and_leaves_biases_to_adam():
    rng = np.random.default_rng(1)
    gradient = {"kernel": jnp.float32(rng.normal(size=(4, 4))), "bias": jnp.float32(rng.normal(size=4))}
    rule = Learner(None, dataclasses.replace(SMALL, optimizer="muon")).optimizer
    direction, _ = rule.update(gradient, rule.init(gradient), gradient)
    values = np.linalg.svd(np.asarray(direction["kernel"], np.float64), compute_uv=False)
    assert values.min() > 0.5  # five Newton-Schulz steps bring singular values to about one
    assert values.max() < 1.5
    # Nesterov's first step of Adam, by hand: 0.1 / (1 - 0.9) + 0.9 * 0.1 / (1 - 0.9^2).
    np.testing.assert_allclose(direction["bias"], (1 + 0.09 / 0.19) * np.sign(gradient["bias"]), atol=1e-3)


@pytest.mark.parametrize(("name", "rate"), [("rmsprop", 2e-3), ("lion", 3e-4), ("muon", 5e-3)])
def test_an_agent_learns_with_every_optimizer(name, rate):
    agent = AgentConfig(num_envs=4, num_steps=64, normalise_reward=True, learning_rate=rate, optimizer=name)
    returns = discover.train("ppo", "CartPole-v1", total_steps=16_384, num_seeds=2, agent=agent, num_evals=4).returns
    assert returns[:, -1].mean() > 2 * 21.2  # a random policy's
