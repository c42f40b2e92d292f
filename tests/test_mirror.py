"""Mirror learning: what is taught once per rollout, and what is minimised once per minibatch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import discover
import learned_objectives as lo
from learned_objectives import cards
from learned_objectives.mirror import MirrorTargets

pytestmark = pytest.mark.usefixtures("strict")

GAMMA, LAMBDA = 0.9, 0.8
BIRTH = lo.Progress(0.0, 1.0)


def random_rollout(seed, T, B):
    rng = np.random.default_rng(seed)
    return lo.Rollout(
        obs=None,
        action=None,
        log_prob=jnp.float32(rng.normal(size=(T, B))),
        critic=jnp.float32(rng.normal(size=(T, B, 1))),
        next_critic=jnp.float32(rng.normal(size=(T, B, 1))),
        reward=jnp.float32(rng.normal(size=(T, B))),
        terminated=jnp.asarray(rng.random((T, B)) < 0.2),
        truncated=jnp.asarray(rng.random((T, B)) < 0.2),
    )


def mirror(drift=None, **kwargs):
    return lo.Mirror(drift or lo.NoDrift(), gamma=GAMMA, gae_lambda=LAMBDA, **kwargs)


def advantage_in_numpy(rollout):
    """A_t = sum over l of (gamma lambda)^l delta_{t+l}, until t's episode ends: no recursion."""
    reward, v, next_v = (np.float64(x) for x in (rollout.reward, rollout.critic[..., 0], rollout.next_critic[..., 0]))
    died, timed_out = np.asarray(rollout.terminated), np.asarray(rollout.truncated)
    advantage = np.zeros(reward.shape)
    for t, b in np.ndindex(reward.shape):
        for k in range(t, reward.shape[0]):
            delta = reward[k, b] - v[k, b] + (0.0 if died[k, b] else GAMMA * next_v[k, b])
            advantage[t, b] += (GAMMA * LAMBDA) ** (k - t) * delta
            if died[k, b] or timed_out[k, b]:
                break
    return advantage


@pytest.mark.parametrize("seed", [0, 1])
def test_generalised_advantage(seed):
    rollout = random_rollout(seed, 23, 5)
    assert (rollout.terminated & rollout.truncated).any()
    advantage = mirror().targets(rollout, BIRTH).advantage
    np.testing.assert_allclose(advantage, advantage_in_numpy(rollout), rtol=1e-5, atol=1e-5)


def test_the_critic_should_say_advantage_plus_what_it_said():
    rollout = random_rollout(0, 6, 3)
    value = mirror().targets(rollout, BIRTH).value
    expected = advantage_in_numpy(rollout) + np.float64(rollout.critic[..., 0])
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("terminated", "truncated", "slope"),
    [(False, False, GAMMA), (False, True, GAMMA), (True, False, 0.0), (True, True, 0.0)],
)
def test_only_a_termination_is_not_bootstrapped(terminated, truncated, slope):
    rollout = random_rollout(0, 1, 1)._replace(
        terminated=jnp.full((1, 1), terminated), truncated=jnp.full((1, 1), truncated)
    )

    def advantage(next_critic):
        return mirror().targets(rollout._replace(next_critic=next_critic), BIRTH).advantage.sum()

    assert jax.jit(jax.grad(advantage))(rollout.next_critic).item() == np.float32(slope)


def test_advantages_know_nothing_beyond_their_episode():
    rollout = random_rollout(0, 7, 1)._replace(
        terminated=jnp.arange(7)[:, None] == 1, truncated=jnp.arange(7)[:, None] == 4
    )

    def advantage(reward):
        targets = mirror().targets(rollout._replace(reward=reward[:, None]), BIRTH)
        return targets.advantage[:, 0]

    d = GAMMA * LAMBDA
    expected = [
        [1, d, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0],  # terminated
        [0, 0, 1, d, d**2, 0, 0],
        [0, 0, 0, 1, d, 0, 0],
        [0, 0, 0, 0, 1, 0, 0],  # truncated
        [0, 0, 0, 0, 0, 1, d],
        [0, 0, 0, 0, 0, 0, 1],
    ]
    slopes = np.asarray(jax.jit(jax.jacrev(advantage))(rollout.reward[:, 0]))  # [advantage at t, reward at k]
    np.testing.assert_allclose(slopes, expected, rtol=1e-6)
    assert (slopes[np.asarray(expected) == 0] == 0).all()


def minibatch(seed=0, N=32):
    """Outputs, the rollout they answer to, and targets; at ratio 1."""
    rollout = jax.tree.map(lambda x: x[:, 0], random_rollout(seed, N, 1))
    rng = np.random.default_rng(seed + 100)
    outputs = lo.Outputs(
        log_prob=rollout.log_prob,
        entropy=jnp.float32(rng.random(N)),
        critic=jnp.float32(rng.normal(size=(N, 1))),
    )
    targets = MirrorTargets(*jnp.float32(3.0 + 2.0 * rng.normal(size=(2, N))))
    return outputs, rollout, targets


def policy_gradient(objective, outputs, rollout, targets, progress):
    """Of the loss, by log pi(a|s): f32[N]."""
    return jax.grad(lambda x: objective.loss(outputs._replace(log_prob=x), rollout, targets, progress)[0])(
        outputs.log_prob
    )


def test_one_step_per_rollout_is_a2c_whatever_the_drift(drift, progress):
    with_drift = policy_gradient(mirror(drift), *minibatch(), progress)
    without = policy_gradient(mirror(), *minibatch(), progress)
    np.testing.assert_array_equal(with_drift, without)
    assert (without != 0).all()


def test_advantages_are_normalised_over_the_minibatch():
    outputs, rollout, targets = minibatch()
    a = np.float64(targets.advantage)
    slope = policy_gradient(mirror(), outputs, rollout, targets, BIRTH)
    np.testing.assert_allclose(slope, -(a - a.mean()) / a.std() / len(a), rtol=1e-5, atol=1e-7)


def test_the_drift_sees_normalised_advantages(progress):
    outputs, rollout, targets = minibatch()
    outputs = outputs._replace(log_prob=rollout.log_prob + 0.3 * jnp.sin(jnp.arange(32.0)))
    scaled = targets._replace(advantage=50.0 * targets.advantage + 7.0)
    for advantages in (targets, scaled):
        metrics = mirror(lo.DPO()).loss(outputs, rollout, advantages, progress)[1]
        a = np.float64(targets.advantage)
        x = np.float64(outputs.log_prob) - np.float64(rollout.log_prob)
        gain = lo.DPO().surrogate(jnp.float32(x), jnp.float32((a - a.mean()) / a.std()))
        np.testing.assert_allclose(metrics["policy_loss"], -gain.mean(), rtol=1e-4)


def test_equal_advantages_stay_finite():
    outputs, rollout, targets = minibatch()
    targets = targets._replace(advantage=jnp.full(32, 2.0))
    assert not policy_gradient(mirror(), outputs, rollout, targets, BIRTH).any()


def test_the_loss_is_the_weighted_sum_of_its_parts():
    weights = {"value_coef": 0.3, "entropy_coef": 0.07}
    loss, parts = mirror(**weights).loss(*minibatch(), BIRTH)
    expected = parts["policy_loss"] + 0.3 * parts["value_loss"] - 0.07 * parts["entropy"]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_entropy_is_a_bonus():
    outputs, rollout, targets = minibatch()
    objective = mirror(entropy_coef=0.5)
    slope = jax.grad(lambda h: objective.loss(outputs._replace(entropy=h), rollout, targets, BIRTH)[0])(outputs.entropy)
    np.testing.assert_allclose(slope, np.full(32, -0.5 / 32), rtol=1e-6)


@pytest.mark.parametrize(
    ("clip", "errors"),
    [
        (None, [1.0, 1.0, 3.0, 0.9]),
        # By hand: the clipped values are 0.2, -0.2, 0.0 and 0.3, and the worse error counts.
        (0.2, [1.8, 1.8, 3.0, 1.3]),
    ],
)
def test_value_loss(clip, errors):
    outputs, rollout, targets = minibatch(N=4)
    outputs = outputs._replace(critic=jnp.array([[1.0], [-3.0], [0.0], [-0.1]]))
    rollout = rollout._replace(critic=jnp.array([[0.0], [0.0], [-0.1], [0.5]]))
    targets = targets._replace(value=jnp.array([2.0, -2.0, 3.0, -1.0]))
    value_loss = mirror(value_clip=clip).loss(outputs, rollout, targets, BIRTH)[1]["value_loss"]
    np.testing.assert_allclose(value_loss, np.mean(np.square(errors)) / 2, rtol=1e-6)


def test_kl_metric_is_the_k3_estimator():
    outputs, rollout, targets = minibatch(N=2)
    outputs = outputs._replace(log_prob=rollout.log_prob + jnp.log(jnp.array([2.0, 0.5])))
    kl = mirror().loss(outputs, rollout, targets, BIRTH)[1]["kl"]
    np.testing.assert_allclose(kl, 0.5 * ((1 - np.log(2)) + (-0.5 + np.log(2))), rtol=1e-4)


@pytest.mark.parametrize("column", ["log_prob", "entropy", "both log_probs", "advantage", "critic"])
def test_columns_are_refused(column):
    outputs, rollout, targets = minibatch()
    if "log_prob" in column:
        outputs = outputs._replace(log_prob=outputs.log_prob[:, None])
    if column == "both log_probs":
        rollout = rollout._replace(log_prob=rollout.log_prob[:, None])
    if column == "entropy":
        outputs = outputs._replace(entropy=outputs.entropy[:, None])
    if column == "advantage":
        targets = targets._replace(advantage=targets.advantage[:, None])
    if column == "critic":
        outputs = outputs._replace(critic=outputs.critic[:, None])
    with (
        jax.numpy_rank_promotion("allow"),  # as a user runs it
        pytest.raises(ValueError, match=r"log ratio, advantage, .* must have one shape, and have"),
    ):
        mirror().loss(outputs, rollout, targets, BIRTH)


def test_its_critic_is_a_value():
    assert mirror().critic_width == 1


def test_the_whole_rollout_is_a_minibatch_too():
    rollout = random_rollout(0, 8, 4)
    targets = mirror().targets(rollout, BIRTH)
    outputs = lo.Outputs(rollout.log_prob + 0.1, rollout.reward**2, rollout.critic + 1.0)
    flat = jax.tree.map(lambda x: x.reshape(32, *x.shape[2:]), (outputs, rollout, targets))
    loss = jax.jit(mirror(lo.Clip()).loss)
    whole, as_batch = loss(outputs, rollout, targets, BIRTH)[0], loss(*flat, BIRTH)[0]
    np.testing.assert_allclose(whole, as_batch, rtol=1e-5)


class NextPrediction(lo.Objective):
    """A vector critic that should say what it will say at the next state, times a searched leaf."""

    scale: jax.Array

    @property
    def critic_width(self):
        return 5

    def targets(self, rollout, progress):
        return self.scale * rollout.next_critic

    def loss(self, outputs, rollout, targets, progress):
        error = jnp.square(outputs.critic - jax.lax.stop_gradient(targets)).sum(-1)
        return 0.5 * error.mean(), {}


def test_a_new_objective_needs_the_base_class_alone():
    objective = NextPrediction(jnp.float32(0.5))
    rng = np.random.default_rng(0)
    critic, next_critic = jnp.float32(rng.normal(size=(2, 4, 3, objective.critic_width)))
    rollout = random_rollout(0, 4, 3)._replace(critic=critic, next_critic=next_critic)
    targets = objective.targets(rollout, BIRTH)
    outputs = lo.Outputs(rollout.log_prob, rollout.reward, critic)
    slope = jax.grad(lambda c: objective.loss(outputs._replace(critic=c), rollout, targets, BIRTH)[0])(critic)
    np.testing.assert_allclose(slope, (critic - 0.5 * next_critic) / 12, rtol=1e-5, atol=1e-7)


def test_training_with_a_drift_of_another_type_is_refused():
    with pytest.raises(TypeError, match=r"^the drift of a Mirror must be a learned_objectives\.Drift"):
        discover.train(lo.Mirror(drift=lambda *_: 0.0), env="CartPole-v1", total_steps=1024, num_seeds=1)


SETTINGS = {"entropy_coef": 0.02, "value_coef": 0.5, "value_clip": 0.2}


def test_a_scheduled_mirror_begins_as_its_mirror(progress):
    plain = mirror(lo.Clip(), **SETTINGS)
    scheduled = lo.ScheduledMirror.create(lo.Clip(), time_aware=True).replace(
        gamma=GAMMA, gae_lambda=LAMBDA, **SETTINGS
    )
    outputs, rollout, _ = minibatch()
    column = jax.tree.map(lambda x: x[:, None], rollout)
    targets = [jax.tree.map(lambda x: x[:, 0], o.targets(column, progress)) for o in (plain, scheduled)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), *targets)
    losses = [o.loss(outputs, rollout, targets[0], progress)[0] for o in (plain, scheduled)]
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_a_scheduled_mirror_is_the_mirror_of_other_settings(progress):
    # At 30 % of a life of 1,000 steps: n/N = 0.3, log10 N - 5.5 = -2.5.
    numbers = jnp.zeros((3, 4)).at[:, 0].set(jnp.array([0.1, 1.0, 0.0]))  # e^(0.1 + 0.3)
    numbers = numbers.at[:, 1].set(jnp.array([0.0, 0.0, 0.2]))  # e^-0.5
    numbers = numbers.at[0, 2].set(np.log(0.5)).at[0, 3].set(np.log(3.0))
    scheduled = lo.ScheduledMirror(
        lo.Clip(), gamma=GAMMA, gae_lambda=LAMBDA, **SETTINGS, numbers=numbers, time_aware=True
    )
    expected = {"entropy_coef": 0.02 * np.exp(0.4), "value_coef": 0.5 * np.exp(-0.5), "value_clip": 0.6}
    plain = lo.Mirror(lo.Clip(), gamma=GAMMA, gae_lambda=0.9, **expected)  # 1 - 0.2 / 2
    outputs, rollout, targets = minibatch()
    outputs = outputs._replace(critic=rollout.critic + 0.5)  # within 0.6, beyond 0.2
    losses = [o.loss(outputs, rollout, targets, progress)[0] for o in (plain, scheduled)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    experience = random_rollout(1, 9, 3)
    advantages = [o.targets(experience, progress).advantage for o in (plain, scheduled)]
    np.testing.assert_allclose(*advantages, rtol=1e-5, atol=1e-6)


def test_a_scheduled_mirror_comes_back_from_its_file(tmp_path):
    made = lo.ScheduledMirror.create(lo.SoftClip.create(time_aware=True), sees_statistics=True)
    made = made.replace(numbers=jnp.arange(20.0).reshape(5, 4), value_clip=0.2)
    lo.save(made, tmp_path / "one.safetensors")
    found = lo.load(tmp_path / "one.safetensors")
    assert jax.tree.structure(found) == jax.tree.structure(made)
    np.testing.assert_array_equal(found.numbers, made.numbers)
    assert found.needs_statistics
    lo.save(made.replace(numbers=jnp.zeros((1, 4))), tmp_path / "two.safetensors")
    with pytest.raises(lo.ObjectiveFileError, match=r"must have numbers of shape \(5, 4\), and has \(1, 4\)"):
        lo.load(tmp_path / "two.safetensors")


def test_probe_values_of_a_scheduled_mirror_have_its_settings():
    start = lo.ScheduledMirror.create(lo.Clip()).replace(value_clip=0.2)
    moved = start.replace(numbers=start.numbers.at[0, 0].set(1.0))
    drift, one, other = (np.asarray(lo.probe(x)) for x in (lo.Mirror(), start, moved))
    assert len(one) == len(drift) + 3 * 4
    assert ((one != other).sum(), (one == other).sum()) == (3, len(one) - 3)  # the entropy weight, at three moments
    assert "entropy weight" in cards._expects(start, {})
    assert "Progress" in cards._expects(lo.ScheduledMirror.create(lo.Clip(), time_aware=True), {})


def test_the_closed_form_of_time_aware_ppo_has_the_lambda_of_its_formula():
    objective = lo.load("ta_ppo")
    for lifetime, expected in ((1e5, 1 - 10 / 150), (1e6, 1 - 1e6**0.2 / 150)):
        for fraction in (0.0, 1.0):
            found = objective.settings(lo.Progress(fraction * lifetime, lifetime))
            assert float(found.gae_lambda) == pytest.approx(expected, abs=1e-5)
            assert float(found.entropy_coef) == pytest.approx(0.01)
    width = objective.drift.width(jnp.array([1.0, -1.0]), lo.Progress(5e5, 1e6))
    np.testing.assert_allclose(width, [0.4, 2.4 * np.exp(1 / 3) / 1e6**0.2], rtol=1e-5)
