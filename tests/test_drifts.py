"""Every drift is a drift, and each is the one its paper wrote."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import learned_objectives as lo

pytestmark = pytest.mark.usefixtures("strict")


@pytest.mark.slow
def test_any_leaves_give_a_drift(drift):
    lo.verify_drift(drift, num_draws=200)


def test_zero_and_flat_at_ratio_one_exactly(drift, progress):
    advantage = jnp.linspace(-5.0, 5.0, 11)
    value, pullback = jax.vjp(lambda x: drift(x, advantage, progress), jnp.zeros(11))
    assert not value.any()
    assert not pullback(jnp.ones(11))[0].any()


def test_one_sample_at_a_time(drift, progress, samples):
    log_ratio, advantage = samples
    one_or_many = jax.jit(lambda *inputs: drift(*inputs))
    together = one_or_many(log_ratio.reshape(4, 16), advantage.reshape(4, 16), progress)
    for i in (0, 17, 63):
        alone = one_or_many(log_ratio[i], advantage[i], progress)
        assert alone.shape == ()
        np.testing.assert_allclose(alone, together.reshape(-1)[i], rtol=1e-5, atol=1e-6)


def test_time_is_asked_for_or_ignored(drift, progress, samples):
    if drift.needs_progress:
        with pytest.raises(ValueError, match=r"pass learned_objectives\.Progress\("):
            drift(*samples)
    else:
        np.testing.assert_array_equal(drift(*samples), drift(*samples, progress))


def test_the_surrogate_is_gain_minus_drift(drift, progress, samples):
    log_ratio, advantage = samples
    gain = np.exp(np.float64(log_ratio)) * np.float64(advantage)
    np.testing.assert_allclose(
        drift.surrogate(*samples, progress),
        gain - np.float64(drift(*samples, progress)),
        rtol=1e-5,
        atol=1e-6,
    )


def test_a_population_is_a_leading_axis(drift, progress, samples):
    scales = jnp.array([0.5, 1.0, 2.0])
    members = [jax.tree.map(lambda leaf, s=s: s * jnp.asarray(leaf), drift) for s in scales]
    population = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    one = jax.jit(lambda d, _: d(*samples, progress))
    together = jax.vmap(one)(population, scales)
    apart = jnp.stack([one(d, s) for d, s in zip(members, scales, strict=True)])
    np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("drift", "count"),
    [
        (lo.Clip(), 1),
        (lo.DPO(), 2),
        (lo.LPO.create(jax.random.key(0)), 1152),
        (lo.LPO.create(jax.random.key(0), time_aware=True), 2176),
    ],
    ids=["ppo", "dpo", "lpo", "ta-lpo"],
)
def test_what_can_be_searched(drift, count):
    assert sum(jnp.size(leaf) for leaf in jax.tree.leaves(lo.Mirror(drift))) == count


class Concatenated(lo.Drift):
    """LPO with n/N beside the features rather than multiplied into them."""

    hidden: jax.Array
    out: jax.Array

    def __call__(self, log_ratio, advantage, progress=None):
        change = -jnp.expm1(log_ratio)
        u = jnp.stack([log_ratio, log_ratio**2, change, change**2], axis=-1)
        time = jnp.full((*log_ratio.shape, 1), progress.fraction)
        x = jnp.concatenate([u, advantage[..., None] * u, time], axis=-1)
        return jax.nn.relu(jnp.tanh(x @ self.hidden) @ self.out - 1e-4)


def test_concatenated_time_is_caught_beyond_a_lucky_start():
    start = Concatenated(jnp.ones((9, 16)), jnp.zeros(16))
    lo.verify_drift(start)
    with pytest.raises(lo.DriftLawError, match=r"must be zero at ratio 1.* n/N = (0\.|1)"):
        lo.verify_drift(start, num_draws=20)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (
            lambda x, a, p: -(x**2),
            "must be non-negative, and here it gives -4 at log ratio -2, advantage -8, n/N = 0, N = 1e+06",
        ),
        (
            lambda x, a, p: jnp.where(p.fraction > 0.4, -1.0, 1.0) * jnp.abs(a) * x**2,
            "must be non-negative, and here it gives -32 at log ratio -2, advantage -8, n/N = 0.5, N = 1e+06",
        ),
        (
            lambda x, a, p: jnp.where((x > 1.97) & (a > 7), jnp.nan, x**2),
            "must be finite, and here it gives nan at log ratio 2, advantage 8, n/N = 0, N = 1e+06",
        ),
        (
            lambda x, a, p: jnp.where(x < -1.97, jnp.inf, x**2),
            "must be finite, and here it gives inf at log ratio -2, advantage -8, n/N = 0, N = 1e+06",
        ),
        (
            lambda x, a, p: x**2 + jnp.where(a == 0, 0.5, 0.0),
            "must be zero at ratio 1, and here it gives 0.5 at log ratio 0, advantage 0, n/N = 0, N = 1e+06",
        ),
        (lambda x, a, p: jnp.abs(x), "must be flat at ratio 1"),
        (lambda x, a, p: jax.nn.relu(x), "must be flat at ratio 1"),
        (lambda x, a, p: jax.nn.relu(-x), "must be flat at ratio 1"),
        (lambda x, a, p: x - jax.lax.stop_gradient(x), "must have derivative zero at ratio 1"),
        (lambda x, a, p: (x**2)[..., None], "(512,) and returned (512, 1)."),
        (lambda x, a, p: (x**2).mean(), "(512,) and returned ()."),
    ],
    ids=[
        "negative",
        "negative-later",
        "nan",
        "infinite",
        "not-zero",
        "kink",
        "kink-above",
        "kink-below",
        "leaking-gradient",
        "extra-axis",
        "mean",
    ],
)
def test_what_is_not_a_drift_is_refused(broken, sentence):
    with pytest.raises(lo.DriftLawError) as error:
        lo.verify_drift(broken)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("negative", "positive"),
    [(lo.Clip(-0.1), lo.Clip(0.1)), (lo.KL(-2.0), lo.KL(2.0))],
    ids=["clip", "kl"],
)
def test_a_search_may_step_over_zero(negative, positive, samples, progress):
    np.testing.assert_array_equal(negative(*samples, progress), positive(*samples, progress))
    assert positive(*samples, progress).any()


RATIOS = np.array([0.5, 0.8, 1.2, 1.5, 2.0, 4.0])


@pytest.mark.parametrize(
    ("advantage", "slopes"),
    [
        (-3.0, [2.977, -0.563, -3.0, -3.0, -3.0, -3.0]),
        (-1.0, [0.343, -0.842, -1.0, -1.0, -1.0, -1.0]),
        (1.0, [1.0, 1.0, 0.990, 0.940, 0.786, 0.181]),
        (3.0, [3.0, 3.0, 2.745, 1.790, 0.542, 0.001]),
    ],
)
def test_dpo_slopes(advantage, slopes):
    """d/dr (r A - D), from the derivative worked out by hand: Lu et al. 2022, alpha 2, beta 0.6."""
    by_log_ratio = jax.jit(jax.vmap(jax.grad(lo.DPO().surrogate), in_axes=(0, None)))
    slope = by_log_ratio(np.log(RATIOS, dtype=np.float32), advantage) / RATIOS
    np.testing.assert_allclose(slope, slopes, atol=5.1e-4)


def _grid():
    """log r in [-3, 3] and A in [-4, 4], without 0 and without the corners of the clip."""
    log_ratio, advantage = np.meshgrid(np.linspace(-3, 3, 40), np.linspace(-4, 4, 20))
    return log_ratio.astype(np.float32), advantage.astype(np.float32)


def test_dpo_is_its_closed_form():
    x, a = (v.astype(np.float64) for v in _grid())
    up, down = (np.exp(x) - 1) * a, x * a
    expected = np.where(
        a >= 0,
        np.maximum(up - 2.0 * np.tanh(up / 2.0), 0),
        np.maximum(down - 0.6 * np.tanh(down / 0.6), 0),
    )
    assert (expected > 0.1).mean() > 0.2
    np.testing.assert_allclose(lo.DPO()(*_grid()), expected, rtol=1e-5, atol=1e-6)


def test_clip_is_the_min_form_of_ppo():
    x, a = (v.astype(np.float64) for v in _grid())
    expected = np.minimum(np.exp(x) * a, np.clip(np.exp(x), 0.8, 1.2) * a)
    np.testing.assert_allclose(lo.Clip(0.2).surrogate(*_grid()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.7, 2.0, 2.0 * 0.3),  # w = 0.2 e^log(2) = 0.4: beyond 1.4
        (1.3, 2.0, 0.0),
        (0.2, 2.0, 0.0),
        (0.5, -3.0, 3.0 * 0.4),  # w = 0.2 e^-log(2) = 0.1: below 0.9
        (0.95, -3.0, 0.0),
        (1.7, -3.0, 0.0),
    ],
)
def test_an_asymmetric_clip_by_hand(ratio, advantage, expected):
    drift = lo.AsymmetricClip(np.log(2.0), -np.log(2.0))
    found = drift(jnp.log(jnp.float32(ratio)), jnp.float32(advantage))
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_an_asymmetric_clip_begins_as_ppo(samples):
    np.testing.assert_array_equal(lo.AsymmetricClip()(*samples), lo.Clip()(*samples))


@pytest.mark.parametrize(
    ("step", "ratio", "advantage", "expected"),
    [
        # w = 0.2 where A >= 0, whenever
        (0.0, 1.5, 2.0, 2.0 * 0.3),
        (100.0, 1.5, 2.0, 2.0 * 0.3),
        # w = 1 / sqrt(100) e^(log(4) n/N) where A < 0: 0.1 at the start, 0.2 at the middle, 0.4 at the end
        (0.0, 0.5, -3.0, 3.0 * 0.4),
        (50.0, 0.5, -3.0, 3.0 * 0.3),
        (100.0, 0.5, -3.0, 3.0 * 0.1),
        (100.0, 0.7, -3.0, 0.0),
    ],
)
def test_a_timed_clip_by_hand(step, ratio, advantage, expected):
    drift = lo.TimedClip(positive=0.2, negative=1.0, power=0.5, growth=np.log(4.0))
    found = drift(jnp.log(jnp.float32(ratio)), jnp.float32(advantage), lo.Progress(step, 100.0))
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_clip_has_the_gradient_of_ppo():
    x, a = _grid()
    slope = jax.grad(lambda x: lo.Clip(0.2).surrogate(x, a).sum())(jnp.asarray(x))
    ratio = np.exp(np.float64(x))
    clipped = ((a > 0) & (ratio > 1.2)) | ((a < 0) & (ratio < 0.8))
    np.testing.assert_allclose(slope, np.where(clipped, 0, ratio * a), rtol=1e-5, atol=1e-5)


def lpo_in_numpy(log_ratio, advantage, hidden, out, *, clip, fraction=None, slack=1e-4):
    """The drift of the original code, in float64; Jackson et al. 2024, eq. 10, with a fraction."""
    log_r, a, w1, w2 = (np.asarray(v, np.float64) for v in (log_ratio, advantage, hidden, out))
    r = np.exp(log_r)
    x = [log_r, log_r * log_r, 1 - r, (1 - r) * (1 - r)]
    x = x + [a * feature for feature in x]
    if fraction is not None:
        x = x + [fraction * feature for feature in x]
    net = sum(w2[j] * np.tanh(sum(feature * w1[i, j] for i, feature in enumerate(x))) for j in range(len(w2)))
    ppo = np.maximum((r - np.clip(r, 1 - clip, 1 + clip)) * a, 0) if clip else 0.0
    return np.maximum(ppo + net - slack, 0)


LARGE = np.repeat(np.array([5.5, 8.0, 15.0, 19.0, 20.0]), 4).astype(np.float32)
BY_LARGE = np.tile(np.array([1e-3, 0.3, 1.3, 5.0]), 5).astype(np.float32)


def large_in_numpy(name):
    """(drift, r A - D in float64) at LARGE, BY_LARGE."""
    x, a = np.float64(LARGE), np.float64(BY_LARGE)
    if name == "clip":
        return lo.Clip(0.2), np.minimum(np.exp(x) * a, np.clip(np.exp(x), 0.8, 1.2) * a)
    if name == "dpo":
        up = np.expm1(x) * a
        return lo.DPO(), np.exp(x) * a - np.maximum(up - 2.0 * np.tanh(up / 2.0), 0.0)
    drift = lo.LPO.create(jax.random.key(3), width=16).replace(out=0.1 * jax.random.normal(jax.random.key(4), (16,)))
    capped = lpo_in_numpy(np.minimum(x, 5.0), a, drift.hidden, drift.out, clip=None, slack=-100.0) - 100.0
    return drift, np.exp(x) * a - np.maximum((np.exp(x) - 1.2) * a + capped - 1e-4, 0.0)


@pytest.mark.parametrize("name", ["clip", "dpo", "lpo"])
def test_a_surrogate_keeps_its_digits_at_large_ratios(name):
    drift, expected = large_in_numpy(name)
    np.testing.assert_allclose(drift.surrogate(LARGE, BY_LARGE), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["clip", "dpo", "lpo"])
def test_the_slope_of_a_surrogate_at_large_ratios_is_zero_where_it_is_constant(name):
    drift, expected = large_in_numpy(name)
    slope = jax.jit(jax.grad(lambda x: drift.surrogate(x, BY_LARGE).sum()))(jnp.asarray(LARGE))
    constant = expected < 0.9 * np.exp(np.float64(LARGE)) * BY_LARGE
    if name == "dpo":
        constant &= np.expm1(np.float64(LARGE)) * BY_LARGE > 20.0
    assert constant.mean() > 0.5
    np.testing.assert_allclose(np.asarray(slope)[constant], 0.0, atol=1e-4)


@pytest.mark.parametrize("drift", [lo.Clip(), lo.DPO(), lo.NoDrift()], ids=["clip", "dpo", "none"])
def test_a_negative_advantage_has_the_whole_slope_at_a_large_ratio(drift):
    slope = jax.grad(lambda x: drift.surrogate(x, jnp.float32(-1.5)))(jnp.float32(19.0))
    np.testing.assert_allclose(slope, -1.5 * np.exp(19.0), rtol=1e-6)


@pytest.mark.parametrize("clip", [0.2, None], ids=["from-ppo", "from-none"])
@pytest.mark.parametrize("fraction", [None, 0.0, 0.3, 1.0])
def test_lpo_is_the_original_network(clip, fraction):
    fresh = lo.LPO.create(jax.random.key(3), width=32, time_aware=fraction is not None, epsilon=clip)
    drift = fresh.replace(out=jax.random.normal(jax.random.key(4), (32,)))
    progress = None if fraction is None else lo.Progress(fraction * 2048.0, 2048.0)
    expected = lpo_in_numpy(*_grid(), drift.hidden, drift.out, clip=clip, fraction=fraction)
    assert 0.1 < (expected > 0).mean() < 0.95
    np.testing.assert_allclose(drift(*_grid(), progress), expected, rtol=1e-5, atol=1e-5)


def test_ta_lpo_begins_life_with_its_first_eight_features():
    key = jax.random.key(5)
    drift = lo.LPO.create(key, time_aware=True).replace(out=jax.random.normal(key, (128,)))
    other = drift.replace(hidden=drift.hidden.at[8:].set(100.0))
    birth, later = lo.Progress(0.0, 1e6), lo.Progress(1.0, 1e6)
    np.testing.assert_array_equal(drift(*_grid(), birth), other(*_grid(), birth))
    assert (drift(*_grid(), later) != other(*_grid(), later)).any()


def test_ta_lpo_is_an_lpo_whose_weights_move():
    key = jax.random.key(6)
    drift = lo.LPO.create(key, time_aware=True).replace(out=jax.random.normal(key, (128,)))
    moved = lo.LPO(drift.hidden[:8] + 0.25 * drift.hidden[8:], drift.out)
    np.testing.assert_allclose(drift(*_grid(), lo.Progress(25.0, 100.0)), moved(*_grid()), rtol=1e-5, atol=1e-5)


def test_a_timed_lpo_is_the_lpo_until_its_new_weights_move(progress):
    drift = lo.LPO.create(jax.random.key(7)).replace(out=jax.random.normal(jax.random.key(8), (128,)))
    timed = drift.timed()
    assert timed.time_aware
    assert timed.timed() is timed
    np.testing.assert_allclose(timed(*_grid(), progress), drift(*_grid()), rtol=1e-5, atol=1e-6)
    timed.validate()
    assert jax.grad(lambda d: d(*_grid(), progress).sum(), allow_int=True)(timed).hidden[8:].any()


@pytest.mark.parametrize("time_aware", [False, True])
def test_a_fresh_lpo_is_ppo_up_to_its_slack(time_aware, progress):
    fresh = lo.LPO.create(jax.random.key(0), time_aware=time_aware)
    gap = lo.Clip(0.2)(*_grid()) - fresh(*_grid(), progress)
    assert (gap >= 0).all()
    assert gap.max() <= 1.01e-4


@pytest.mark.parametrize("time_aware", [False, True])
def test_a_fresh_lpo_from_none_is_no_drift(time_aware, progress):
    fresh = lo.LPO.create(jax.random.key(0), time_aware=time_aware, epsilon=None)
    assert not fresh(*_grid(), progress).any()


def test_both_members_of_an_antithetic_pair_teach_something():
    def gap(start):
        plus = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.ones_like(leaf), start)
        minus = jax.tree.map(lambda leaf: leaf - 0.1 * jnp.ones_like(leaf), start)
        return jnp.abs(plus(*_grid()) - minus(*_grid())).max()

    fresh = lo.LPO.create(jax.random.key(0))
    assert gap(fresh) > 0.1
    assert gap(fresh.replace(hidden=jnp.zeros((8, 128)))) == 0  # the start of the original code


@pytest.mark.parametrize("edge", [-5.0, 5.0])
def test_lpo_features_stand_still_beyond_five(edge):
    fresh = lo.LPO.create(jax.random.key(0), epsilon=None)
    drift = fresh.replace(out=jnp.sign(fresh.hidden.sum(0)))
    advantage = jnp.linspace(-3.0, 3.0, 7)
    at, beyond, within = (drift(jnp.full(7, s * edge), advantage) for s in (1.0, 100.0, 0.1))
    np.testing.assert_array_equal(at, beyond)
    assert (at != within).any()


def _two_policies():
    logits = np.random.default_rng(0).normal(size=(2, 7))
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_kl_is_the_divergence_in_expectation():
    old, new = _two_policies()
    exact = (new * np.log(new / old)).sum()
    drift = lo.KL()(jnp.float32(np.log(new / old)), jnp.zeros(7), lo.Progress(0.0, 1.0))
    np.testing.assert_allclose((old * np.float64(drift)).sum(), exact, rtol=1e-5)


def test_kl_weighs_more_as_life_goes_by():
    half, end = (
        lo.KL()(0.5, 1.0, lo.Progress(step, 100.0)) / lo.KL()(0.5, 1.0, lo.Progress(0.0, 100.0))
        for step in (50.0, 100.0)
    )
    np.testing.assert_allclose([half, end], [2.0, 1000.0], rtol=1e-5)


def test_progress_is_a_share_of_life():
    assert lo.Progress(0, 10).fraction == 0.0
    assert lo.Progress(5, 20).fraction == 0.25
    assert lo.Progress(30, 20).fraction == 1.0
    np.testing.assert_allclose(lo.Progress(0, 1000).log_lifetime, 6.907755, rtol=1e-6)


@pytest.mark.parametrize("read", ["fraction", "log_lifetime"])
@pytest.mark.parametrize(
    ("progress", "sentence"),
    [
        (lo.Progress(0, 0), "the lifetime of a Progress must be positive, in environment steps, and is 0"),
        (lo.Progress(0.0, jnp.float32(0.0)), "the lifetime of a Progress must be positive"),
        (lo.Progress(1.0, -5.0), "must be positive, in environment steps, and is -5.0"),
        (lo.Progress(0, np.array([10.0, 0.0])), "the lifetime of a Progress must be positive"),
        (lo.Progress(0, float("nan")), "the lifetime of a Progress must be positive"),
        (lo.Progress(-1, 10), "the step of a Progress must be at least 0, in environment steps, and is -1"),
        (lo.Progress(float("nan"), 10), "the step of a Progress must be at least 0"),
    ],
)
def test_a_progress_without_a_life_is_refused(progress, sentence, read):
    with pytest.raises(ValueError, match=sentence):
        getattr(progress, read)


def test_a_progress_may_hold_axes_and_zeros_until_it_is_read():
    half = jax.vmap(lambda p: p.fraction, in_axes=(lo.Progress(0, None),))(lo.Progress(jnp.array([1.0, 5.0]), 10.0))
    np.testing.assert_allclose(half, [0.1, 0.5], rtol=1e-6)
    jax.tree.map(jnp.zeros_like, lo.Progress(1.0, 2.0))
    assert jax.jit(lambda p: p.fraction)(lo.Progress(1.0, 4.0)) == 0.25


@pytest.mark.parametrize("drift", [lo.KL(), lo.load("ta_lpo_2026_11"), lo.load("mdpo")], ids=["kl", "ta_lpo", "mdpo"])
@pytest.mark.parametrize("progress", [0.5, (1.0, 2.0), jnp.float32(0.5)], ids=["float", "pair", "array"])
def test_a_share_of_life_by_itself_is_no_progress(drift, progress, samples):
    with pytest.raises(
        TypeError, match=r"needs a Progress and was given .*pass learned_objectives\.Progress\(step, lifetime\)"
    ):
        (drift.surrogate if isinstance(drift, lo.Mirror) else drift)(*samples, progress)


def test_a_mirror_without_a_drift_says_what_to_give(samples):
    with pytest.raises(TypeError, match=r"the drift of a Mirror must be .* and is 'dpo': give lo\.DPO\(\)"):
        lo.Mirror(drift="dpo").surrogate(*samples)  # type: ignore[arg-type]
