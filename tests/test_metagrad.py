"""The meta-gradient is the derivative of what it says, through every update, and points where returns grow."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.spaces import Discrete

import discover
import learned_objectives as lo
from discover.agents.agent import Agent, AgentConfig
from discover.searches.curriculum import AssignedTask
from discover.searches.families import FormulaConfig
from discover.searches.metagrad import ESTIMATORS, MetaGrad, MetaGradConfig, Window
from discover.searches.problem import Problem
from discover.searches.recipe import Recipe
from envs.gridworld import GridWorld, make_level, policy_evaluation
from envs.probes import Probe
from learned_objectives.mirror import generalised_advantage, normalise

WINDOW = 2
QUICK = {"xla_backend_optimization_level": 0}  # compiling is nearly all the cost, and this halves it
UNREGULARISED = {
    "entropy_coef": 0.0,
    "prediction_entropy_coef": 0.0,
    "policy_target_coef": 0.0,
    "prediction_target_coef": 0.0,
}
CONFIG = AgentConfig(
    num_envs=8, num_steps=4, num_epochs=2, num_minibatches=1, optimizer="sgd", learning_rate=2.0, max_grad_norm=0.5
)
ADAM = dataclasses.replace(CONFIG, optimizer="adam", learning_rate=0.1)


class Tiny(GridWorld):
    """Three rows, three columns, and a thing two steps away that ends the episode."""

    def level(self, reward=1.0):
        return make_level(3, 3, objects=[[reward, 1.0, 0.0]], cells=[4], start=0, max_steps=6)

    @property
    def default_params(self):
        return self.level()


ENV = Tiny(3, 3, 1)


def lpg(cell, seed=0):
    objective = lo.LPG.create(jax.random.key(seed), predictions=3, hidden=8, cell=cell)
    grown = {name: 10.0 * getattr(objective, name) for name in ("policy_head", "prediction_head")}
    return objective.replace(**grown)


def lpo():
    key = jax.random.key(0)
    drift = lo.LPO.create(key, width=8)
    return lo.Mirror(drift.replace(out=jax.random.normal(key, (8,))))


OBJECTIVES = {
    "lstm": lambda: lpg("lstm"),
    "gru": lambda: lpg("gru"),
    "lpo": lpo,
    "dpo": lambda: lo.Mirror(lo.DPO(jnp.float32(2.0), jnp.float32(0.6))),
}


@cache
def search(name, agent=CONFIG, env=ENV, **config):
    """One search per configuration, and so one compiled window."""
    config = {"members": 1, "chunk": 1, "window": WINDOW} | config
    return MetaGrad(MetaGradConfig(**config), Agent(env, agent, OBJECTIVES[name]().critic_width))


@cache
def window(meta):
    """(objective, member) -> ((loss, (member, metrics)), gradient)."""
    program = jax.value_and_grad(meta.window, has_aux=True)
    return jax.jit(program, compiler_options=QUICK)


def born(meta, level, *, updates=10, rate=None, key=0):
    """A member in mid-life, its tables full of numbers."""
    task = meta.agent.task(level, updates * meta.agent.config.steps_per_update)
    if rate is not None:
        task = task.replace(learning_rate=jnp.float32(rate))
    drawn = AssignedTask(task, jnp.int32(-1), jnp.int32(0), jnp.float32(jnp.nan), jnp.float32(-jnp.inf))
    member = meta.birth(drawn, jax.random.key(key), jnp.int32(updates))
    rng = np.random.default_rng(key)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), member.state.params)
    return member.replace(state=member.state.replace(params=params))


def wide(tree):
    """In float64; call it where that is enabled."""
    return jax.tree.map(lambda x: x.astype("float64") if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "optimizer", "estimator"),
    [
        ("lstm", "sgd", "debiased"),
        ("gru", "adam", "debiased"),
        ("lpo", "adam", "debiased"),
        ("dpo", "sgd", "standard"),
    ],
)
def test_the_meta_gradient_is_that_of_differences(name, optimizer, estimator):
    """Sampled actions stand still under a small change, and with them the advantages of an outer critic. Those of the agent's
    own critic do so where the objective does not reach it: a drift with tables of its own, and no norm shared with them."""
    config = CONFIG if optimizer == "sgd" else ADAM
    if estimator == "standard":
        config = dataclasses.replace(config, max_grad_norm=1e9)
    meta, objective = search(name, config, estimator=estimator), OBJECTIVES[name]()
    member = born(meta, ENV.level())
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        objective, member = wide(objective), wide(member)
        run = window(meta)
        _, gradient = run(objective, member)
        leaves, treedef = jax.tree.flatten(objective)
        for i, slope in enumerate(jax.tree.leaves(gradient)):
            direction = rng.normal(size=slope.shape)
            losses = []
            for step in (1e-6, -1e-6):
                moved = [x + step * direction if i == j else x for j, x in enumerate(leaves)]
                losses.append(float(run(jax.tree.unflatten(treedef, moved), member)[0][0]))
            expected = (losses[0] - losses[1]) / 2e-6
            np.testing.assert_allclose((slope * direction).sum(), expected, rtol=1e-4, atol=1e-9)
        assert np.sqrt(sum((np.asarray(x) ** 2).sum() for x in jax.tree.leaves(gradient))) > 1e-4


def values_of_chance(gamma):
    """V of the uniform policy in `Tiny`, by hand: five moves from each of nine cells, a reward and an end at cell 4."""
    a, b = np.eye(9), np.zeros(9)
    for cell in range(9):
        row, column = divmod(cell, 3)
        for down, right in ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)):
            inside = 0 <= row + down < 3 and 0 <= column + right < 3
            target = 3 * (row + down) + column + right if inside else cell
            if target == 4:
                b[cell] += 0.2
            else:
                a[cell, target] -= 0.2 * gamma
    return np.linalg.solve(a, b)


@pytest.mark.slow
def test_the_outer_critic_finds_the_values_of_the_policy():
    meta, objective = search("lstm"), OBJECTIVES["lstm"]()
    member = born(meta, ENV.level(), updates=1000, rate=0.0)
    actor = jax.tree.map(jnp.zeros_like, member.state.params["actor"])
    member = member.replace(state=member.state.replace(params=member.state.params | {"actor": actor}))
    start, errors = member.critic, []
    with jax.enable_x64(True):
        objective, member = wide(objective), wide(member)
        for _ in range(150):
            (_, (member, metrics)), _ = window(meta)(objective, member)
            errors.append(float(metrics["critic_loss"]))
    start, (found,) = jax.tree.leaves(start), jax.tree.leaves(member.critic)
    assert not start[0].any()
    known = values_of_chance(meta.config.gamma)
    there = [9 + cell for cell in (0, 1, 3)]  # those met most, with the object present
    np.testing.assert_allclose(np.asarray(found)[there, 0], known[[0, 1, 3]], atol=0.1)
    assert np.mean(errors[-30:]) < 0.7 * np.mean(errors[:5])
    assert int(member.tally.count) == 150


def by_hand(meta, objective, member):
    """The parts of a window, update by update: (the agent that came out, metrics [K], what it met)."""
    state, step = member.state, jax.jit(meta.agent.step, compiler_options=QUICK)
    metrics = []
    for _ in range(meta.config.window):
        state, _, shown = step(objective, member.drawn.task, state)
        metrics.append({name: np.mean(value) for name, value in shown.items()})
    _, outer = jax.jit(meta._look, compiler_options=QUICK)(objective, state, member)
    return state, metrics, outer


def rows_met(state, obs):
    """log pi and log y at every observation met, in float64."""
    tables = (np.asarray(jax.tree.leaves(state.params[name])[0], np.float64) for name in ("actor", "critic"))
    return [x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (table[np.asarray(obs)] for table in tables)]


def advantages_in_numpy(rollout, *, gamma, gae_lambda):
    """Schulman et al. 2016, eq. 16, normalised."""
    advantage, out = 0.0, []
    value, after = (np.asarray(x)[..., 0] for x in (rollout.critic, rollout.next_critic))
    terminated, truncated, reward = (np.asarray(x) for x in (rollout.terminated, rollout.truncated, rollout.reward))
    for t in reversed(range(len(reward))):
        delta = reward[t] + gamma * np.where(terminated[t], 0.0, after[t]) - value[t]
        advantage = delta + gamma * gae_lambda * np.where(terminated[t] | truncated[t], 0.0, advantage)
        out.append(advantage)
    raw = np.stack(out[::-1])
    return (raw - raw.mean()) / raw.std()


def test_the_loss_of_a_window_is_its_formula():
    meta, bare, objective = search("lstm"), search("lstm", **UNREGULARISED), OBJECTIVES["lstm"]()
    member = born(meta, ENV.level())
    with jax.enable_x64(True):
        objective, member = wide(objective), wide(member)
        (full, (_, shown)), _ = window(meta)(objective, member)
        (plain, _), _ = window(bare)(objective, member)
        state, metrics, outer = by_hand(meta, objective, member)
    log_pi, log_y = rows_met(state, outer.obs)
    advantage = advantages_in_numpy(outer, gamma=0.99, gae_lambda=0.95)
    chosen = np.take_along_axis(log_pi, np.asarray(outer.action)[..., None], -1)[..., 0]
    np.testing.assert_allclose(plain, -(chosen * advantage).mean(), rtol=1e-6)
    entropy = -(np.exp(log_pi) * log_pi).sum(-1).mean()
    prediction_entropy = -(np.exp(log_y) * log_y).sum(-1).mean()
    policy_square, prediction_square = (
        np.mean([m[f"{name}_target_square"] for m in metrics]) for name in ("policy", "prediction")
    )
    expected = -0.05 * entropy - 0.001 * prediction_entropy + 0.005 * policy_square + 0.001 * prediction_square
    np.testing.assert_allclose(full - plain, expected, rtol=1e-6)
    np.testing.assert_allclose(shown["reward"], np.asarray(outer.reward).mean(), rtol=1e-6)


@pytest.mark.parametrize(
    ("coefficient", "sign", "term"),
    [
        ("entropy_coef", -1, "entropy of the policy"),
        ("prediction_entropy_coef", -1, "entropy of the predictions"),
        ("policy_target_coef", 1, "square of pi_hat"),
        ("prediction_target_coef", 1, "square of y_hat"),
    ],
)
def test_each_regulariser_has_its_sign(coefficient, sign, term):
    meta, objective = search("lstm"), OBJECTIVES["lstm"]()
    member = born(meta, ENV.level())
    obs = jnp.arange(18)[:, None]
    rollout = lo.Rollout(obs, *7 * [None])
    targets = lo.LPGTargets(jnp.float32([[0.5, -2.0]]), jnp.log(jnp.float32([[[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]])))
    outputs = lo.Outputs(jnp.zeros((1, 2)), jnp.zeros((1, 2)), jnp.zeros((1, 2, 3)))
    _, metrics = objective.loss(outputs, rollout, targets, lo.Progress(0.0, 1.0))
    log_pi, log_y = rows_met(member.state, obs)
    terms = {
        "entropy of the policy": -(np.exp(log_pi) * log_pi).sum(-1).mean(),
        "entropy of the predictions": -(np.exp(log_y) * log_y).sum(-1).mean(),
        "square of pi_hat": (0.25 + 4.0) / 2,
        "square of y_hat": (0.25 + 0.09 + 0.04 + 0.01 + 0.01 + 0.64) / 2,
    }
    seen = Window(before=member.state, after=member.state, metrics=metrics, outer=rollout, advantage=None)
    losses = [
        MetaGrad(MetaGradConfig(**(UNREGULARISED | {coefficient: value})), meta.agent).regulariser(seen)
        for value in (0.5, 1.5)
    ]
    np.testing.assert_allclose(losses[1] - losses[0], sign * terms[term], rtol=1e-5)
    assert terms[term] > 0.1


def newborn(meta, level):
    """As a life begins: tables of zeros, most of whose rows will never have been visited."""
    member = born(meta, level)
    params = jax.tree.map(jnp.zeros_like, member.state.params)
    return member.replace(state=member.state.replace(params=params))


def finite(tree):
    return all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(tree))


@pytest.mark.slow
def test_gradients_are_finite_where_adam_has_seen_only_zeros():
    meta, objective = search("lstm", ADAM), OBJECTIVES["lstm"]()
    member = newborn(meta, ENV.level())
    (_, (after, _)), gradient = window(meta)(objective, member)
    rows = np.asarray(jax.tree.leaves(after.state.params["actor"])[0])
    assert (rows == 0).all(-1).any()
    assert (rows != 0).any()
    assert finite(gradient)
    assert gradient.policy_head.any()
    # Targets that ask for nothing: every gradient of the agent is exactly zero, and so is its norm.
    idle = objective.replace(
        policy_head=jnp.zeros_like(objective.policy_head), prediction_head=jnp.zeros_like(objective.prediction_head)
    )
    (_, (after, _)), gradient = window(meta)(idle, member)
    assert not any(x.any() for x in jax.tree.leaves(after.state.params))
    assert finite(gradient)


@pytest.mark.slow
def test_gradients_are_finite_where_all_advantages_are_equal():
    """In a world without reward, under a critic that says nothing: their deviation is zero, and has no derivative."""
    meta, objective = search("lpo", ADAM), OBJECTIVES["lpo"]()
    idle, busy = newborn(meta, ENV.level(reward=0.0)), born(meta, ENV.level())
    with jax.enable_x64(True):  # the program of its differences, which is compiled
        _, gradient = window(meta)(wide(objective), wide(idle))
        assert finite(gradient)
        _, gradient = window(meta)(wide(objective), wide(busy))
        assert finite(gradient)
        assert gradient.drift.out.any()
    assert finite(jax.grad(lambda a: (normalise(a) * jnp.arange(4.0)).sum())(jnp.ones(4)))


@pytest.mark.parametrize(("done", "teaches"), [(3, True), (4, True), (5, False), (7, False)])
def test_updates_after_the_end_of_a_life_teach_nothing(done, teaches):
    meta, objective = search("lstm", **UNREGULARISED), OBJECTIVES["lstm"]()
    member = born(meta, ENV.level(), updates=5, key=3)  # which meets a reward
    member = member.replace(state=member.state.replace(num_updates=jnp.int32(done)))
    with jax.enable_x64(True):
        (_, (after, _)), gradient = window(meta)(wide(objective), wide(member))
    assert any(x.any() for x in jax.tree.leaves(gradient)) == teaches
    assert int(after.state.num_updates) == max(done, min(done + WINDOW, 5))


ARMS = np.array([1.0, 0.2, -0.5])


class Bandit(Probe):
    """One state, three arms, one step."""

    name = "probe/bandit"

    def show(self, state):
        return jnp.int32(0)

    def reward(self, state, action):
        return jnp.asarray(ARMS, jnp.float32)[action]

    def observation_space(self, params):
        return Discrete(1)

    def action_space(self, params=None):
        return Discrete(3)


class Preference(lo.Objective):
    """Makes each action likelier by a number of its own."""

    weight: jax.Array  # f32[3]

    @property
    def critic_width(self):
        return 1

    def targets(self, rollout, progress):
        return self.weight[rollout.action]

    def loss(self, outputs, rollout, targets, progress):
        return -(outputs.log_prob * targets).mean(), {}


BANDIT = Bandit()
WEIGHT = np.array([0.5, 0.2, 0.1])


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


@cache
def bandit(estimator, lives=1500, **config):
    """Of many lives of one update: the estimator's ascent directions [lives, 3], and the exact ones by hand, both in units
    of the deviation of the reward, by which advantages are normalised."""
    agent = Agent(
        BANDIT,
        AgentConfig(
            num_envs=32, num_steps=4, num_starts=4, num_epochs=1, num_minibatches=1, optimizer="sgd", learning_rate=3.0,
            anneal=False, max_grad_norm=1e9,
        ),
    )  # fmt: skip
    meta = MetaGrad(MetaGradConfig(estimator=estimator, window=1, **UNREGULARISED, **config), agent)
    task = agent.task(BANDIT.default_params, 128 * 10)
    drawn = AssignedTask(task, jnp.int32(-1), jnp.int32(0), jnp.float32(jnp.nan), jnp.float32(-jnp.inf))
    objective = Preference(jnp.asarray(WEIGHT, jnp.float32))

    def live(key):
        member = meta.birth(drawn, key, jnp.int32(10))
        gradient = jax.grad(lambda o: meta.window(o, member)[0])(objective)
        after, met, _ = agent.step(objective, task, member.state)
        return -gradient.weight, jax.tree.leaves(after.params["actor"])[0][0], met.action

    keys = jax.random.split(jax.random.key(5), lives)
    estimate, after, action = (np.asarray(x) for x in jax.jit(jax.vmap(live), compiler_options=QUICK)(keys))
    # theta_1 = 3 sum_k (n_k / n) w_k (e_k - pi_0), from a table of zeros; J = sum_a pi_1(a) r(a).
    share = np.stack([(action == k).mean((1, 2)) for k in range(3)], axis=-1)
    away = np.eye(3) - 1 / 3
    theta = 3.0 * (share * WEIGHT) @ away
    np.testing.assert_allclose(after, theta, rtol=1e-4, atol=1e-6)
    pi = softmax(theta)
    value = (pi * ARMS).sum(-1, keepdims=True)
    by_weight = 3.0 * share * ((pi * (ARMS - value)) @ away.T)
    return estimate, by_weight / np.sqrt((pi * (ARMS - value) ** 2).sum(-1, keepdims=True))


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["debiased", "standard"])
def test_policy_gradient_estimators_agree_with_the_exact_gradient(estimator):
    estimate, exact = bandit(estimator)
    error = (estimate - exact).std(0) / len(exact) ** 0.5
    size = np.linalg.norm(exact.mean(0))
    assert (error < 0.02 * size).all()
    # The deviation of 128 rewards is itself a sample's: a bias of the order of 1 / 128.
    np.testing.assert_allclose(estimate.mean(0), exact.mean(0), atol=4 * error.max() + 0.01 * size)
    assert cosine(estimate.mean(0), exact.mean(0)) > 0.99


@pytest.mark.slow
def test_the_bootstrapped_estimator_climbs():
    estimate, exact = bandit("bootstrapped", lives=500, bootstrap_updates=3)
    assert cosine(estimate.mean(0), exact.mean(0)) > 0.5


@pytest.mark.slow
def test_the_bootstrapped_estimator_takes_agents_of_adam():
    meta, objective = search("lstm", ADAM, estimator="bootstrapped", bootstrap_updates=1), OBJECTIVES["lstm"]()
    _, gradient = window(meta)(objective, newborn(meta, ENV.level()))
    assert finite(gradient)
    assert gradient.policy_head.any()


@pytest.mark.slow
def test_the_target_of_the_bootstrapped_estimator_is_a_step_of_the_agent():
    """Half-way through an annealed life, with a clipped gradient: by hand, in NumPy, for tables."""
    config = dataclasses.replace(CONFIG, anneal=True, max_grad_norm=0.05)
    meta, objective = search("dpo", config, estimator="bootstrapped", bootstrap_updates=1), OBJECTIVES["dpo"]()
    member = born(meta, ENV.level(), updates=10, rate=8.0)
    with jax.enable_x64(True):
        objective, member = wide(objective), wide(member)
        state = member.state.replace(num_updates=jnp.int32(6))
        _, outer = meta._look(objective, state, member)
        seen = Window(state, state, {}, outer, None)
        found = ESTIMATORS["bootstrapped"](meta, objective, member, seen)
    table = np.asarray(jax.tree.leaves(state.params["actor"])[0], np.float64)
    obs, action = (np.asarray(x).reshape(-1) for x in (outer.obs, outer.action))
    advantage = advantages_in_numpy(outer, gamma=0.99, gae_lambda=0.95).reshape(-1)
    gradient = np.zeros_like(table)
    for s, a, weight in zip(obs, action, advantage, strict=True):  # of -mean[log pi(a|s) A]
        gradient[s] += weight * (softmax(table[s]) - np.eye(5)[a]) / obs.size
    assert np.linalg.norm(gradient) > 0.05
    target = table - 8.0 * (1 - 6 / 10) * gradient * 0.05 / np.linalg.norm(gradient)
    p, q = softmax(target)[obs], softmax(table)[obs]
    np.testing.assert_allclose(found, (p * np.log(p / q)).sum(-1).mean(), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("mixing", "weights"), [(1.0, [1 / 3, 1 / 3, 1 / 3]), (0.5, [1 / 7, 2 / 7, 4 / 7])])
def test_the_mixed_estimator_is_the_weighted_sum_of_windows_of_each_length(mixing, weights):
    """Each window of k updates is one of its own, of `debiased`, on the same keys: their gradients are weighted by hand."""
    objective = OBJECTIVES["lpo"]()
    mixed = search("lpo", ADAM, estimator="mixed", window=3, mixing=mixing, **UNREGULARISED)
    parts = [search("lpo", ADAM, window=k, **UNREGULARISED) for k in (1, 2, 3)]
    member = born(mixed, ENV.level())
    with jax.enable_x64(True):
        objective, member = wide(objective), wide(member)
        (loss, (after, _)), found = window(mixed)(objective, member)
        each = [window(part)(objective, member) for part in parts]
    expected = jax.tree.map(
        lambda *g: sum(w * np.asarray(x) for w, x in zip(weights, g, strict=True)), *(g for _, g in each)
    )
    losses = [float(value) for (value, _), _ in each]
    np.testing.assert_allclose(loss, np.dot(weights, losses), rtol=1e-10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12), found, expected)
    (_, (last, _)), _ = each[-1]
    np.testing.assert_array_equal(after.state.num_updates, last.state.num_updates)
    assert np.abs(np.asarray(found.drift.out)).max() > 1e-4
    assert mixed.rollouts == 3 + 3


@pytest.mark.slow
def test_without_mixing_the_mixed_estimator_is_debiased():
    objective = OBJECTIVES["dpo"]()
    metas = [search("dpo", estimator="mixed", mixing=0.0), search("dpo", estimator="debiased")]
    member = born(metas[0], ENV.level())
    with jax.enable_x64(True):
        found, expected = (window(meta)(wide(objective), wide(member))[1] for meta in metas)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14), found, expected)


def test_a_mixing_that_is_no_share_is_refused():
    with pytest.raises(ValueError, match=r"search.mixing must be in \[0, 1\], and is 1.5"):
        MetaGradConfig(mixing=1.5)


@pytest.mark.slow
def test_a_run_that_mixes_resumes_with_the_same_bytes(tmp_path):
    recipe = dataclasses.replace(SEVERAL, search=dataclasses.replace(SEVERAL.search, estimator="mixed", window=2))
    whole = discover.meta_train(recipe, tmp_path / "whole")
    discover.meta_train(dataclasses.replace(recipe, generations=2), tmp_path / "parts")
    parts = discover.meta_train(recipe, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole.objective, parts.objective)


@pytest.mark.slow
def test_the_highest_return_is_of_every_episode_of_a_life():
    """Also of those that a later one followed within the window, of each of its updates, and of levels known before."""
    meta, objective = search("dpo", estimator="debiased"), OBJECTIVES["dpo"]()
    level = make_level(3, 3, objects=[[1.0, 0.0, 0.0]], cells=[4], start=0, max_steps=2)
    step = jax.jit(meta.agent.step, compiler_options=QUICK)
    look, live = jax.jit(meta._look, compiler_options=QUICK), window(meta)
    hidden = 0  # Lives whose best episode was not the last of any environment.
    with jax.enable_x64(True):
        objective = wide(objective)
        for key in range(12):
            member = born(meta, level, updates=100, key=key)
            known = wide(member.replace(tally=member.tally.replace(max_return=jnp.float32(7.0))))
            member = wide(member)
            state, rollouts = member.state, []
            for _ in range(meta.config.window):
                state, rollout, _ = step(objective, member.drawn.task, state)
                rollouts.append(rollout)
            rollouts.append(look(objective, state, member)[1])
            (_, (member, _)), _ = live(objective, member)
            (_, (known, _)), _ = live(objective, known)
            running, returns = np.zeros(CONFIG.num_envs), []
            for rollout in rollouts:
                reward, done = np.asarray(rollout.reward), np.asarray(rollout.terminated | rollout.truncated)
                for r, d in zip(reward, done, strict=True):
                    running += r
                    returns += list(running[d])
                    running[d] = 0.0
            assert float(member.tally.max_return) == max(returns)
            assert float(known.tally.max_return) == 7.0
            hidden += max(returns) > float(member.state.env.episodes.last.max())
    assert hidden


@pytest.mark.slow
def test_the_outer_critic_reaches_values_far_from_zero():
    """A uniform policy in a world whose values are near 3: within 15 % of the exact ones, and without bias, after 25 rollouts."""
    config = dataclasses.replace(CONFIG, num_envs=64, num_steps=20)
    meta = MetaGrad(MetaGradConfig(members=1, chunk=1), Agent(ENV, config))
    level, objective = (
        make_level(3, 3, objects=[[1.0, 0.0, 0.05]], cells=[4], start=0, max_steps=50),
        OBJECTIVES["dpo"](),
    )

    def look(member, _):
        state = member.state.replace(num_updates=member.state.num_updates + 1)  # new keys
        env, outer = meta._look(objective, state, member)
        advantage = generalised_advantage(outer, gamma=0.99, gae_lambda=0.95)
        critic, opt, _ = meta._fit_critic(member, state, outer, advantage)
        after = member.replace(state=state.replace(env=env), critic=critic, critic_opt=opt)
        return after, (advantage.mean(), advantage.std(), outer.obs, outer.critic[..., 0])

    life = jax.jit(lambda member: jax.lax.scan(look, member, None, length=50)[1], compiler_options=QUICK)
    mean, deviation, obs, value = (np.asarray(x)[25:] for x in life(newborn(meta, level)))
    policy = jnp.full((ENV.num_states, 5), 0.2)
    exact = np.asarray(policy_evaluation(ENV, level, policy, gamma=0.99, steps=1500).mean(1))[obs]
    assert exact.mean() > 2.5
    assert np.abs(value - exact).mean() < 0.15 * exact.mean()
    assert abs(mean.mean()) < 0.05 * deviation.mean()


SEVERAL = Recipe(
    objective=FormulaConfig("dpo"),
    envs=("CartPole-v1", "Acrobot-v1"),
    total_steps=256,
    generations=4,
    evaluate_every=2,
    exported="last",
    evaluation_seeds=2,
    checkpoint_every=1,
    agent=AgentConfig(num_envs=4, num_steps=16, num_epochs=4, learning_rate=0.05, hidden=(8,), normalise_reward=True),
    search=MetaGradConfig(members=2, window=1, learning_rate=0.01, estimator="standard", entropy_coef=0.0),
)


def test_in_several_environments_the_step_follows_the_mean_of_their_gradients():
    """The expected step is Adam's first, by hand, along the mean of the gradients in each environment."""
    problem = Problem(SEVERAL)
    search = SEVERAL.search.build(problem)
    state = search.init()
    births = [np.asarray(jax.random.key_data(members.state.key)) for members in state.members]
    assert not (births[0] == births[1]).all()
    sums = [world.window(state.objective, each)[0] for world, each in zip(search.worlds, state.members, strict=True)]
    flat = [np.concatenate([np.asarray(x, np.float64).sum(0).ravel() for x in jax.tree.leaves(g)]) for g in sums]
    assert all(np.abs(g).max() > 0 for g in flat)
    mean = (flat[0] + flat[1]) / 4
    after, row = search.step(state, 0)
    np.testing.assert_allclose(row["meta"]["gradient_norm"], np.linalg.norm(mean), rtol=1e-4)
    moved = [
        np.asarray(new, np.float64) - np.asarray(old)
        for new, old in zip(jax.tree.leaves(after.objective), jax.tree.leaves(state.objective), strict=True)
    ]
    np.testing.assert_allclose(np.ravel(moved), -0.01 * mean / (np.abs(mean) + 1e-8), rtol=1e-3, atol=1e-6)
    assert problem.updates == search.updates_per_step == 2 * 2 * 2
    assert {"reward/CartPole-v1", "reward/Acrobot-v1"} < row["meta"].keys()


def test_in_several_environments_a_resumed_run_ends_with_the_same_bytes(tmp_path):
    whole = discover.meta_train(SEVERAL, tmp_path / "whole")
    discover.meta_train(dataclasses.replace(SEVERAL, generations=2), tmp_path / "parts")
    parts = discover.meta_train(SEVERAL, tmp_path / "parts")
    for a, b in zip(jax.tree.leaves(whole.objective), jax.tree.leaves(parts.objective), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [row["meta"] for row in whole.rows if "meta" in row] == [row["meta"] for row in parts.rows if "meta" in row]
