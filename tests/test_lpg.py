"""LPG looks back from the end of an episode and no further, learns what it says, and is the network its papers count."""

import dataclasses
import math
import re
import warnings
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import learned_objectives as lo
from discover.agents.agent import Agent, AgentConfig
from discover.agents.setups import GRID, SHUFFLED_GRID, warn_if_far
from discover.evaluation.evaluate import evaluate
from discover.evaluation.train import train
from envs.gridworld import GridWorld, make_level
from learned_objectives.recurrent import gru, lstm

PROGRESS = lo.Progress(jnp.float32(300.0), jnp.float32(1000.0))
# Compiling is nearly all the cost of these tests, and this halves it.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(params=["lstm", "gru"])
def cell(request):
    return request.param


def lpg(cell="lstm", seed=0, **changes):
    """A small LPG whose heads, near zero at creation, have grown as in a search."""
    objective = lo.LPG.create(jax.random.key(seed), **({"predictions": 3, "hidden": 8, "cell": cell} | changes))
    grown = {name: 10.0 * getattr(objective, name) for name in ("policy_head", "prediction_head")}
    return objective.replace(**grown)


def made_up(steps=6, num_envs=2, predictions=3, terminated=(), truncated=()):
    """A rollout of random numbers, with the ends given as (t, b)."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=(steps, num_envs, *shape)), jnp.float32)

    def flags(where):
        out = np.zeros((steps, num_envs), bool)
        for t, b in where:
            out[t, b] = True
        return jnp.asarray(out)

    return lo.Rollout(
        obs=None,
        action=None,
        log_prob=-jnp.abs(normal()),
        critic=normal(predictions),
        next_critic=normal(predictions),
        reward=normal(),
        terminated=flags(terminated),
        truncated=flags(truncated),
    )


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def gru_in_numpy(x, end, kernel, bias, weights, inner):
    """Cho et al. 2014, as the papers' code has it, one gate and one step at a time."""
    size, h, out = len(inner), np.zeros((x.shape[1], len(inner))), []
    for x_t, end_t in zip(x[::-1], end[::-1], strict=True):
        h = np.where(end_t[:, None], 0.0, h)
        (xr, xz, xn), (hr, hz, hn) = (np.split(a, [size, 2 * size], axis=1) for a in (x_t @ kernel + bias, h @ weights))
        z = sigmoid(xz + hz)
        h = (1.0 - z) * np.tanh(xn + sigmoid(xr + hr) * (hn + inner)) + z * h
        out.append(h)
    return np.stack(out[::-1])


def lstm_in_numpy(x, end, kernel, bias, weights):
    size, out = len(weights), []
    h = c = np.zeros((x.shape[1], size))
    for x_t, end_t in zip(x[::-1], end[::-1], strict=True):
        h, c = (np.where(end_t[:, None], 0.0, a) for a in (h, c))
        i, f, g, o = np.split(x_t @ kernel + bias + h @ weights, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        out.append(h)
    return np.stack(out[::-1])


def net(cell):
    """(the net, the same in NumPy, its float64 arguments, whether each is a number to differentiate by)."""
    rng = np.random.default_rng(1)
    steps, num_envs, inputs, hidden = 6, 3, 2, 3
    end = np.zeros((steps, num_envs), bool)
    end[2, 0] = end[5, 1] = end[0, 1] = end[3, 2] = end[4, 2] = True
    gates = {"lstm": 4, "gru": 3}[cell]
    shapes = [(inputs, gates * hidden), (gates * hidden,), (hidden, gates * hidden), (hidden,)][: 7 - gates]
    arguments = [rng.normal(size=(steps, num_envs, inputs)), end, *(rng.normal(size=shape) for shape in shapes)]
    return {"lstm": (lstm, lstm_in_numpy), "gru": (gru, gru_in_numpy)}[cell], arguments


def test_a_recurrent_net_is_the_loop_over_its_steps(cell):
    (net_, in_numpy), arguments = net(cell)
    with jax.enable_x64(True):
        np.testing.assert_allclose(jit(net_)(*arguments), in_numpy(*arguments), rtol=1e-12, atol=1e-14)


def test_the_gradients_of_a_recurrent_net_are_those_of_its_differences(cell):
    (net_, in_numpy), arguments = net(cell)
    weight = np.random.default_rng(2).normal(size=in_numpy(*arguments).shape)
    numbers = [i for i in range(len(arguments)) if i != 1]  # not the ends
    with jax.enable_x64(True):
        gradients = jit(jax.grad(lambda *a: (net_(*a) * weight).sum(), argnums=numbers))(*arguments)
    for i, gradient in zip(numbers, gradients, strict=True):
        expected = np.zeros_like(arguments[i])
        for index in np.ndindex(expected.shape):
            sums = []
            for step in (1e-5, -1e-5):
                moved = [a.copy() for a in arguments]
                moved[i][index] += step
                sums.append((in_numpy(*moved) * weight).sum())
            expected[index] = (sums[0] - sums[1]) / 2e-5
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(gradient, expected, rtol=1e-7, atol=1e-8)


def seen_from(targets, rollout, objective):
    """Whether each target moves with each reward: bool[T, B, T, B]; exactly zero derivatives are none."""

    def of(reward):
        made = objective.targets(rollout._replace(reward=reward), PROGRESS)
        return getattr(made, targets)

    derivative = np.asarray(jit(jax.jacrev(of))(rollout.reward))
    return (derivative != 0).any(2) if targets == "prediction" else derivative != 0


@pytest.mark.parametrize("targets", ["policy", "prediction"])
def test_a_target_knows_the_rest_of_its_own_episode_and_nothing_else(cell, targets):
    rollout = made_up(terminated=[(1, 0), (4, 1)], truncated=[(3, 0), (4, 1)])
    seen = seen_from(targets, rollout, lpg(cell))
    episode = np.array([[0, 0], [0, 0], [1, 0], [1, 0], [2, 0], [2, 1]])  # [T, B], counted by hand
    for t, b, s, other in np.ndindex(seen.shape):
        assert seen[t, b, s, other] == (b == other and s >= t and episode[t, b] == episode[s, b])


def test_what_comes_after_a_termination_does_not_matter(cell):
    rollout = made_up(terminated=[(1, 0), (4, 1)], truncated=[(3, 0), (4, 1)])
    objective = lpg(cell)

    def total(next_critic):
        targets = objective.targets(rollout._replace(next_critic=next_critic), PROGRESS)
        return targets.policy.sum() + targets.prediction[..., 0].sum()

    matters = (np.asarray(jit(jax.grad(total))(rollout.next_critic)) != 0).any(-1)
    np.testing.assert_array_equal(matters, ~np.asarray(rollout.terminated))


def test_a_prediction_target_is_a_distribution(cell):
    targets = lpg(cell).targets(made_up(), PROGRESS)
    assert targets.policy.shape == (6, 2)
    assert targets.prediction.shape == (6, 2, 3)
    np.testing.assert_allclose(np.exp(np.float64(targets.prediction)).sum(-1), 1.0, rtol=1e-6)
    assert np.ptp(targets.prediction, axis=-1).min() > 1e-3


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def outputs_and_targets():
    rng = np.random.default_rng(3)
    outputs = lo.Outputs(-rng.exponential(size=(6, 2)), rng.exponential(size=(6, 2)), rng.normal(size=(6, 2, 3)))
    targets = lo.LPGTargets(rng.normal(size=(6, 2)), log_softmax(rng.normal(size=(6, 2, 3))))
    return (jax.tree.map(jnp.float32, x) for x in (outputs, targets))


def test_the_loss_is_its_formula():
    outputs, targets = outputs_and_targets()
    y, y_hat = np.exp(log_softmax(outputs.critic)), np.exp(np.float64(targets.prediction))
    policy = -(np.float64(outputs.log_prob) * np.float64(targets.policy)).mean()
    divergence = (y * np.log(y / y_hat)).sum(-1).mean()
    loss, metrics = lpg(prediction_coef=0.7).loss(outputs, made_up(), targets, PROGRESS)
    np.testing.assert_allclose(loss, policy + 0.7 * divergence, rtol=1e-5, atol=1e-6)
    expected = {
        "policy_loss": policy,
        "prediction_loss": divergence,
        "entropy": np.float64(outputs.entropy).mean(),
        "prediction_entropy": -(y * np.log(y)).sum(-1).mean(),
        "policy_target_square": (np.float64(targets.policy) ** 2).mean(),
        "prediction_target_square": (y_hat**2).sum(-1).mean(),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def loss_gradients(log_prob_target, log_y, log_y_hat, coef):
    """By hand: dL/dlog pi = -pi_hat / n and dL/dlogits = coef y (log y - log y_hat - KL) / n."""
    y, gap = np.exp(log_y), log_y - log_y_hat
    n = log_prob_target.size
    return -log_prob_target / n, coef * y * (gap - (y * gap).sum(-1, keepdims=True)) / n


def test_the_agent_learns_towards_targets_that_stand_still():
    outputs, targets = outputs_and_targets()
    objective, rollout = lpg(prediction_coef=0.7), made_up()
    gradient = jax.grad(lambda o: objective.loss(o, rollout, targets, PROGRESS)[0])(outputs)
    by_log_prob, by_logits = loss_gradients(
        np.float64(targets.policy), log_softmax(outputs.critic), np.float64(targets.prediction), 0.7
    )
    np.testing.assert_allclose(gradient.log_prob, by_log_prob, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradient.critic, by_logits, rtol=1e-4, atol=1e-7)
    assert not gradient.entropy.any()


class Tiny(GridWorld):
    """A world of two rows, three columns and one object, in which episodes end both ways."""

    @property
    def default_params(self):
        return make_level(2, 3, objects=[[1.0, 0.3, 0.5]], cells=[5], start=0, max_steps=7)


def test_one_update_of_a_tabular_agent_is_the_papers():
    env = Tiny(2, 3, 1)
    config = AgentConfig(
        num_envs=3, num_steps=8, num_epochs=1, num_minibatches=1, optimizer="sgd", learning_rate=20.0, anneal=False,
        max_grad_norm=1e9,
    )  # fmt: skip
    agent, objective = Agent(env, config, critic_width=3), lpg(prediction_coef=0.7)
    task = agent.task(env.default_params, 24 * 10)
    state = jit(agent.init)(task, jax.random.key(0))
    state = state.replace(
        params=jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), state.params)
    )
    after, rollout, _ = jit(agent.step)(objective, task, state)
    targets = objective.targets(rollout, agent.progress(task, state))
    logits, y = (np.float64(jax.tree.leaves(state.params[name])[0]) for name in ("actor", "critic"))
    by_log_prob, by_logits = loss_gradients(
        np.float64(targets.policy), log_softmax(y)[rollout.obs], np.float64(targets.prediction), 0.7
    )
    actor, critic = np.zeros_like(logits), np.zeros_like(y)
    for t, b in np.ndindex(rollout.reward.shape):
        s, a = rollout.obs[t, b], rollout.action[t, b]
        actor[s] += by_log_prob[t, b] * (np.eye(len(logits[0]))[a] - np.exp(log_softmax(logits[s])))
        critic[s] += by_logits[t, b]
    assert 20.0 * np.abs(actor).max() > 0.1
    assert 20.0 * np.abs(critic).max() > 0.1
    for name, expected in (("actor", logits - 20.0 * actor), ("critic", y - 20.0 * critic)):
        np.testing.assert_allclose(jax.tree.leaves(after.params[name])[0], expected, rtol=1e-4, atol=1e-5)


def test_what_the_net_is_shown():
    objective = lpg(time_aware=True, gamma=0.97)
    rollout = made_up(terminated=[(1, 0)], truncated=[(3, 0)])
    x = np.asarray(objective._inputs(rollout, PROGRESS))
    assert x.shape == (6, 2, 8)

    def phi(logits):
        y = np.exp(log_softmax(logits))
        hidden = np.maximum(y @ np.float64(objective.embed) + np.float64(objective.embed_bias), 0.0)
        return hidden @ np.float64(objective.embed_out) + np.float64(objective.embed_out_bias)

    np.testing.assert_array_equal(x[..., 0], rollout.reward)
    np.testing.assert_array_equal(x[..., 1], rollout.terminated)
    np.testing.assert_allclose(x[..., 2], np.exp(np.float64(rollout.log_prob)), rtol=1e-6)
    np.testing.assert_allclose(x[..., 3], phi(rollout.critic), rtol=1e-4, atol=1e-6)
    expected = np.where(rollout.terminated, 0.0, phi(rollout.next_critic))
    np.testing.assert_allclose(x[..., 4], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(x[..., 5], 0.97, rtol=1e-6)
    np.testing.assert_allclose(x[..., 6], 0.3, rtol=1e-6)
    np.testing.assert_allclose(10.0 * x[..., 7], math.log(1000), rtol=1e-6)


def test_time_goes_from_zero_to_one_in_environment_steps():
    env = Tiny(2, 3, 1)
    agent = Agent(env, AgentConfig(num_envs=4, num_steps=16, num_minibatches=1), critic_width=3)
    task = agent.task(env.default_params, 64 * 5 + 63)  # whole rollouts count
    objective, rollout = lpg(time_aware=True), made_up()
    state = agent.init(task, jax.random.key(0))
    columns = []
    for updates in range(6):
        progress = agent.progress(task, state.replace(num_updates=jnp.int32(updates)))
        columns.append(np.asarray(objective._inputs(rollout, progress))[..., -2:])
    fraction, log_lifetime = np.moveaxis(np.stack(columns), -1, 0)
    expected = np.broadcast_to(np.arange(6).reshape(6, 1, 1) / 5, fraction.shape)
    np.testing.assert_allclose(fraction, expected, rtol=1e-6)
    assert (fraction[0] == 0.0).all()
    assert (fraction[-1] == 1.0).all()
    np.testing.assert_allclose(10.0 * log_lifetime, math.log(320), rtol=1e-6)


@pytest.mark.parametrize("time_aware", [False, True])
def test_time_is_seen_by_the_time_aware_alone(cell, time_aware):
    objective, rollout = lpg(cell, time_aware=time_aware), made_up()

    def total(progress):
        targets = objective.targets(rollout, progress)
        return targets.policy.sum() + targets.prediction[..., 0].sum()

    gradient = jit(jax.grad(total))(PROGRESS)
    assert (gradient.step != 0, gradient.lifetime != 0) == (time_aware, time_aware)


def test_time_does_not_drown_what_else_an_unsearched_net_is_shown(cell):
    """log N is about ten times any other input: the gates must not be shut by it before a search has begun."""
    rollout, progress = made_up(), lo.Progress(jnp.float32(0.0), jnp.float32(320_000.0))

    @jit
    def by_reward(objective):
        def total(reward):
            return objective.targets(rollout._replace(reward=reward), progress).policy.sum()

        return jnp.abs(jax.grad(total)(rollout.reward)).mean()

    plain, aware = (
        np.mean([by_reward(lpg(cell, seed, hidden=32, time_aware=time_aware)) for seed in range(8)])
        for time_aware in (False, True)
    )
    assert aware > 0.5 * plain


@pytest.mark.parametrize("see_gamma", [False, True])
def test_gamma_is_seen_if_it_is_to_be(cell, see_gamma):
    objective, rollout = lpg(cell, see_gamma=see_gamma), made_up()
    near, far = (dataclasses.replace(objective, gamma=gamma).targets(rollout, PROGRESS) for gamma in (0.9, 0.99))
    assert (near.policy != far.policy).any() == see_gamma


@pytest.mark.parametrize("time_aware", [False, True])
def test_what_is_loaded_gives_the_same_targets(cell, time_aware, tmp_path):
    saved = lpg(cell, time_aware=time_aware, gamma=0.97, prediction_coef=0.3)
    lo.save(saved, tmp_path / "lpg.safetensors")
    loaded = lo.load(tmp_path / "lpg.safetensors")
    assert jax.tree.structure(loaded) == jax.tree.structure(saved)
    for a, b in zip(loaded.targets(made_up(), PROGRESS), saved.targets(made_up(), PROGRESS), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cell": "rnn"}, r"^cell must be 'lstm' or 'gru', and is 'rnn'\.$"),
        ({"predictions": 0}, r"^predictions must be at least 1, and is 0\.$"),
        ({"hidden": -3}, r"^hidden must be at least 1, and is -3\.$"),
    ],
)
def test_what_cannot_be_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        lo.LPG.create(jax.random.key(0), **changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden": 9}, "the kernel of this LPG should have shape"),
        ({"cell": "gru"}, "the kernel of this LPG should have shape"),
        ({"time_aware": True}, r"the kernel of this LPG should have shape \(8, 32\), and has \(6, 32\)"),
        ({"cell": "rnn"}, "an LPG has a cell 'lstm' or 'gru', and this one 'rnn'"),
    ],
)
def test_a_file_whose_parts_do_not_fit_is_refused(changes, sentence, tmp_path):
    lo.save(dataclasses.replace(lpg(), **changes), tmp_path / "lpg.safetensors")
    with pytest.raises(lo.ObjectiveFileError, match=sentence):
        lo.load(tmp_path / "lpg.safetensors")


def test_a_population_of_lpgs_is_the_loop_over_them(cell):
    members = [lpg(cell, seed, time_aware=True) for seed in range(3)]
    population = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    outputs, _ = outputs_and_targets()
    rollout = made_up(terminated=[(1, 0)], truncated=[(3, 1)])

    def of(objective):
        targets = objective.targets(rollout, PROGRESS)
        return targets, jax.grad(lambda o: o.loss(outputs, rollout, o.targets(rollout, PROGRESS), PROGRESS)[0])(
            objective
        )

    together = jit(jax.vmap(of))(population)
    apart = jax.tree.map(lambda *leaves: np.stack(leaves), *map(jit(of), members))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), together, apart)
    assert (together[0].policy[0] != together[0].policy[1]).any()


def count(create):
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(create, jax.random.key(0))))


def test_grooves_lpg_has_the_parameters_of_grooves_code():
    """Flax's GRUCell has biases on its three products with x and on one of its three with h, as here."""
    phi = 8 * 16 + 16 + 16 + 1  # y of M = 8 to 16, and to a number
    gru = 3 * (5 * 256 + 256) + 3 * 256 * 256 + 256  # x = [r, d, pi, phi(y), phi(y')]
    heads = 256 + 1 + 256 * 8 + 8
    assert phi + gru + heads == 203_946
    assert count(lo.LPG.groove) == 203_946
    # Each of the two inputs of time enters three gates.
    assert count(partial(lo.LPG.groove, time_aware=True)) == 203_946 + 2 * 3 * 256 == 205_482


def test_the_papers_lpg_has_the_parameters_of_its_formula():
    phi = 30 * 16 + 16 + 16 + 1
    lstm = 4 * ((6 + 256) * 256 + 256)  # x has gamma besides
    heads = 256 + 1 + 256 * 30 + 30
    assert count(lo.LPG.create) == phi + lstm + heads


def test_an_lpg_predicts_as_many_numbers_as_its_critic_gives():
    assert lpg(predictions=5).critic_width == 5
    assert jax.eval_shape(lo.LPG.create, jax.random.key(0)).critic_width == 30
    assert jax.eval_shape(lo.LPG.groove, jax.random.key(0)).critic_width == 8


@pytest.mark.parametrize("name", ["surrogate", "drift"])
def test_what_only_mirror_learning_has_says_what_to_call(name):
    assert not hasattr(lpg(), name)
    with pytest.raises(AttributeError, match=rf"an LPG has no {name}, .*call targets = lpg\.targets\(.*lpg\.loss\("):
        getattr(lpg(), name)


def test_a_time_aware_lpg_without_its_progress_says_so():
    with pytest.raises(TypeError, match=r"TA-LPG needs a Progress and was given 0\.5"):
        lpg(time_aware=True).targets(made_up(), 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("objective", "config", "sentence"),
    [
        (lpg(), AgentConfig(learning_rate=5e-4), r"one gradient step per rollout, and these agents take 16 "),
        (lpg(), replace(GRID.agent, num_epochs=2), r"one gradient step per rollout, and these agents take 2 "),
        (lpg(), replace(GRID.agent, learning_rate=0.1), "used with sgd at about 40, and learning_rate is 0.1"),
        (lpg(), replace(GRID.agent, optimizer="adam"), "used with adam at about 0.0005, and learning_rate is 40"),
        (lpg(), GRID.agent, None),
        (lpg(), SHUFFLED_GRID.agent, None),
        (lo.Mirror(), AgentConfig(), None),
    ],
    ids=["usual", "epochs", "sgd", "adam", "tables", "networks", "ppo"],
)
def test_settings_far_from_those_of_its_family_are_warned_of(objective, config, sentence):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_far(objective, config)
    assert [bool(re.search(sentence or "", str(w.message))) for w in caught] == [True] * (sentence is not None)


@pytest.mark.slow
def test_training_with_an_lpg_in_unsuitable_agents_warns():
    small = AgentConfig(num_envs=2, num_steps=4, num_epochs=2, num_minibatches=1, hidden=(4,))
    sentence = "This LPG may not learn with these settings: it takes one gradient step"
    for call in (
        lambda: train(lpg(), "CartPole-v1", total_steps=8, num_seeds=1, agent=small),
        lambda: evaluate({"lpg": lpg()}, ["CartPole-v1"], total_steps=8, num_seeds=2, agent=small),
    ):
        with pytest.warns(UserWarning, match=sentence) as caught:
            call()
        assert [warning.filename for warning in caught] == [__file__]
