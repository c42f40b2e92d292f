"""`verify_drift` finds what is not a drift, wherever it breaks a law, and passes what is one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import learned_objectives as lo

pytestmark = pytest.mark.usefixtures("strict")


def sound(x, a, p):
    """A drift: 0.5 (1 + |A|) (log r)^2."""
    return 0.5 * (1.0 + jnp.abs(a)) * x**2


def dipping(where):
    """`sound`, and -0.01 where it says so."""
    return lambda x, a, p: jnp.where(where(x, a, p), -0.01, sound(x, a, p))


def kinked(slope):
    return lambda x, a, p: x**2 + slope(x, a, p)


def years(p):
    return p.lifetime / 1e6


@jax.custom_jvp
def spiky(x):
    return x**2


@spiky.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    return x**2, jnp.where(jnp.abs(x) > 3.0, jnp.nan, 2.0 * x) * dx


DIPS = {
    "ratios 1.05 to 1.10": dipping(lambda x, a, p: (x > np.log(1.05)) & (x < np.log(1.10))),
    "one n/N, 0.37": dipping(lambda x, a, p: (jnp.abs(p.fraction - 0.37) < 1e-3) & (x > 0.1)),
    "one lifetime, 131,072": dipping(lambda x, a, p: (p.lifetime == 131_072) & (x > 0.1)),
    "advantages 1.5 to 2.5": dipping(lambda x, a, p: (a > 1.5) & (a < 2.5) & (jnp.abs(x) > 0.01)),
    "advantages beyond 8.5": dipping(lambda x, a, p: (jnp.abs(a) > 8.5) & (x > 0.1)),
    "log r beyond 2": dipping(lambda x, a, p: jnp.abs(x) > 2.1),
    # and ten more
    "advantages beyond 50": dipping(lambda x, a, p: (a > 50.0) & (x < -0.1)),
    "ratios 1.0010 to 1.0015": dipping(lambda x, a, p: (x > 1.0e-3) & (x < 1.5e-3)),
    "ratio 0.98, A 3.3 to 3.6": dipping(lambda x, a, p: (jnp.abs(x + 0.02) < 2e-3) & (a > 3.3) & (a < 3.6)),
    "log r beyond 15": dipping(lambda x, a, p: x > 15.0),
    "the last per mille of a life": dipping(lambda x, a, p: (p.fraction > 0.999) & (x > 0.5)),
    "lives of 3 to 5 million steps": dipping(lambda x, a, p: (years(p) > 3) & (years(p) < 5) & (x > 0.5)),
    "long lives, late, far": dipping(lambda x, a, p: (years(p) > 1e3) & (p.fraction > 0.9) & (x > 2.0)),
    "small advantages": dipping(lambda x, a, p: (jnp.abs(a) < 1e-4) & (jnp.abs(a) > 0) & (x > 0.05)),
    "the life of 500,000 steps in rollouts of 512": dipping(lambda x, a, p: (p.lifetime == 499_712) & (x > 0.1)),
    "the second rollout of 512 in 5 million steps": dipping(
        lambda x, a, p: (jnp.abs(p.fraction * 4_999_680 - 512) < 1) & (x > 0.1)
    ),
    "the first ten-thousandth of a life": dipping(lambda x, a, p: (p.fraction > 0) & (p.fraction < 1e-4) & (x > 0.1)),
    "tiny advantages": dipping(lambda x, a, p: (jnp.abs(a) < 1e-7) & (a != 0) & (x > 0.1)),
    "a narrow valley": lambda x, a, p: (x - 0.7) ** 2 * x**2 + (a - 1.234) ** 2 * x**2 - 1e-6 * (jnp.abs(x) > 0.1),
    "a valley at one n/N": lambda x, a, p: (
        x**2 * ((x - 0.3) ** 2 + (p.fraction - 0.512) ** 2 - 2e-5) * jnp.exp(-0.01 * jnp.abs(a))
    ),
}
KINKS = {
    "9e-6 |x|": kinked(lambda x, a, p: 9e-6 * jnp.abs(x)),
    "9e-6 relu(x)": kinked(lambda x, a, p: 9e-6 * jax.nn.relu(x)),
    "-9e-6 |x|": kinked(lambda x, a, p: -9e-6 * jnp.abs(x)),
    "9e-6 |x|, A from 8 to 12": kinked(lambda x, a, p: jnp.where((a > 8) & (a < 12), 9e-6, 0.0) * jnp.abs(x)),
    "9e-6 |x|, one lifetime": kinked(lambda x, a, p: jnp.where(p.lifetime == 2.0**20, 9e-6, 0.0) * jnp.abs(x)),
    "1e-3 |x|, one n/N": kinked(lambda x, a, p: jnp.where(jnp.abs(p.fraction - 0.8123) < 1e-3, 1e-3, 0.0) * jnp.abs(x)),
    "1e-3 |x| on 100 x^2": lambda x, a, p: 100.0 * x**2 + 1e-3 * jnp.abs(x),
    "no derivative": kinked(lambda x, a, p: 1e-4 * jnp.abs(jax.lax.stop_gradient(x))),
}
stop = jax.lax.stop_gradient


def straight(value, slope_of):
    """The value of one function of log r with the derivative of another."""
    return lambda x, a, p: stop(value(x)) + slope_of(x) - stop(slope_of(x))


HIDDEN = {
    "no value at all": straight(jnp.zeros_like, lambda x: -5.0 * jnp.where(jnp.abs(x) > 2e-6, jnp.abs(x), 0.0)),
    "the other sign": straight(jnp.square, lambda x: -0.5 * x**2),
    "half": straight(jnp.square, lambda x: 0.5 * x**2),
    "beyond a clip": straight(lambda x: jnp.expm1(x) ** 2, lambda x: jnp.expm1(jnp.clip(x, -0.5, 0.5)) ** 2),
}
OF_THE_BATCH = {
    "200 samples": lambda x, a, p: x**2 * (1.0 if x.size < 200 else 1.1),
    "small deviation": lambda x, a, p: 0.05 * x**2 + jnp.where((x.std() > 0) & (x.std() < 0.05), 1e-4, 0.0) * (x != 0),
    "small maximum": lambda x, a, p: 0.05 * x**2 * jnp.where((jnp.abs(x).max() < 0.1) & (x.size > 1), 1.5, 1.0),
    "a hundredth": lambda x, a, p: 0.05 * x**2 * jnp.where((jnp.abs(x).max() < 0.05) & (x.size > 1), 1.5, 1.0),
    "three axes": lambda x, a, p: x**2 * (1.1 if x.ndim == 3 else 1.0),
    "mean": lambda x, a, p: x**2 * (1.0 + a.mean() ** 2),
    "largest": lambda x, a, p: x**2 / (1.0 + jnp.abs(x).max()),
    "first": lambda x, a, p: x**2 * (1.0 + (jnp.arange(x.size) == 0).reshape(x.shape)),
    "neighbour": lambda x, a, p: x**2 + jnp.roll(x, 1) ** 2 * x**2,
    "rank": lambda x, a, p: x**2 * (1.0 + jnp.argsort(jnp.argsort(a.ravel())).reshape(a.shape) / a.size),
    "size": lambda x, a, p: x**2 * x.size,
    "axes": lambda x, a, p: x**2 * x.ndim,
}
ELSE = {
    "not zero at ratio 1 at one A": (lambda x, a, p: x**2 + jnp.where(a > 20.0, 1e-4, 0.0), "be zero at ratio 1"),
    "nan at large ratios": (lambda x, a, p: x**2 + 0.0 * jnp.exp(5.0 * x), "be finite"),
    "nan derivative": (lambda x, a, p: spiky(x), "have a finite derivative"),
}


@pytest.mark.parametrize("broken", DIPS.values(), ids=DIPS)
def test_a_dip_is_found_wherever_it_is(broken):
    with pytest.raises(
        lo.DriftLawError, match=r"must be non-negative, .* gives -.* at log ratio .*, n/N = .*, N = .* steps"
    ):
        lo.verify_drift(broken)


@pytest.mark.parametrize("broken", KINKS.values(), ids=KINKS)
def test_a_kink_is_found_however_small(broken):
    with pytest.raises(
        lo.DriftLawError, match=r"be flat at ratio 1|derivative zero at ratio 1|derivative that vanishes"
    ):
        lo.verify_drift(broken)


@pytest.mark.parametrize("broken", HIDDEN.values(), ids=HIDDEN)
def test_a_derivative_that_is_not_that_of_the_values_is_found(broken):
    with pytest.raises(lo.DriftLawError, match="must have the derivative that its values have"):
        lo.verify_drift(broken)


@pytest.mark.parametrize("broken", OF_THE_BATCH.values(), ids=OF_THE_BATCH)
def test_what_looks_at_the_batch_is_found(broken):
    with pytest.raises(lo.DriftLawError, match="must treat each sample by itself"):
        lo.verify_drift(broken)


@pytest.mark.parametrize(("broken", "law"), ELSE.values(), ids=ELSE)
def test_the_other_laws_hold_everywhere(broken, law):
    with pytest.raises(lo.DriftLawError, match=f"must {law}"):
        lo.verify_drift(broken)


def test_where_a_law_is_broken_it_is_broken():
    broken = DIPS["ratios 1.05 to 1.10"]
    with pytest.raises(lo.DriftLawError) as error:
        lo.verify_drift(broken)
    (x,) = (float(word.rstrip(",")) for word in str(error.value).split("log ratio ")[1].split()[:1])
    assert 1.05 < np.exp(x) < 1.10


SOUND = {
    "sound": sound,
    "(r - 1)^2": lambda x, a, p: jnp.expm1(x) ** 2,
    "r log r - r + 1": lambda x, a, p: jnp.exp(x) * x - jnp.expm1(x),
    "r - 1 - log r": lambda x, a, p: jnp.expm1(x) - x,
    "|A| x^2 n/N log N": lambda x, a, p: jnp.abs(a) * x**2 * p.fraction * p.log_lifetime,
    "|x|^1.5": lambda x, a, p: x**2 / jnp.sqrt(jnp.abs(x) + 1e-30),
    "|x|^1.2": lambda x, a, p: jnp.abs(x) ** 1.2,
    "steep": lambda x, a, p: 1e3 * (jnp.exp(x) * x - jnp.expm1(x)),
    "a comb of kinks": lambda x, a, p: jnp.minimum(x**2, 0.01 + jnp.abs(10.0 * x - jnp.round(10.0 * x))),
    "fine waves": lambda x, a, p: x**2 * (1.0 + 0.5 * jnp.sin(300.0 * x)),
}


@pytest.mark.parametrize("drift", SOUND.values(), ids=SOUND)
def test_a_drift_passes(drift):
    lo.verify_drift(drift)


def test_code_that_changed_is_read_again():
    factor = 1.0

    class Mine(lo.Drift):
        def __call__(self, log_ratio, advantage, progress=None):
            return factor * log_ratio**2

    lo.verify_drift(Mine())
    factor = -1.0
    with pytest.raises(lo.DriftLawError, match="be non-negative"):
        lo.verify_drift(Mine())
    Mine.__call__ = lambda self, log_ratio, advantage, progress=None: 2.0 * log_ratio**2
    lo.verify_drift(Mine(), num_draws=1)
    Mine.__call__ = lambda self, log_ratio, advantage, progress=None: jnp.abs(log_ratio)
    with pytest.raises(lo.DriftLawError, match="be flat at ratio 1"):
        lo.verify_drift(Mine(), num_draws=1)


def test_a_drift_that_rounds_to_a_kink_is_told_of_expm1():
    with pytest.raises(lo.DriftLawError, match=r"write r - 1 as jnp\.expm1"):
        lo.verify_drift(lambda x, a, p: jnp.exp(x) - 1.0 - x)


@pytest.mark.parametrize("name", [name for name in lo.available() if isinstance(lo.load(name), lo.Mirror)])
def test_a_mirror_is_checked_by_its_drift(name):
    lo.verify_drift(lo.load(name))


def test_a_mirror_of_a_broken_drift_is_refused():
    class Broken(lo.Drift):
        def __call__(self, log_ratio, advantage, progress=None):
            return jnp.abs(log_ratio)

    with pytest.raises(lo.DriftLawError, match="be flat at ratio 1"):
        lo.verify_drift(lo.Mirror(drift=Broken()))


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        (lo.LPG.create(jax.random.key(0), hidden=2), "was given a LPG, which has no drift."),
        ("lpo", "was given 'lpo': call verify_drift(learned_objectives.load('lpo'))."),
        (0.2, "was given a float, which has no drift."),
        (lo.DPO, "was given the class DPO: give an instance of it."),
        (lo.LPO, "was given the class LPO: give an instance of it."),
        (lo.Mirror, "was given the class Mirror: give an instance of it."),
        (lambda x, a: x**2, "was given one of (x, a): let it take these three in this order"),
    ],
    ids=["lpg", "name", "number", "DPO", "LPO", "Mirror", "two arguments"],
)
def test_what_has_no_drift_is_refused(what, sentence):
    with pytest.raises(TypeError) as error:
        lo.verify_drift(what)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    "untraceable",
    [
        lambda x, a, p: np.square(x),
        lambda x, a, p: x**2 if x[0] > 0 else 2.0 * x**2,
        lambda x, a, p: x**2 if p.fraction < 0.5 else 2.0 * x**2,
        lambda x, a, p: x**2 * [1.0, 2.0][(x[0] > 0).astype(int)],
        lambda x, a, p: x**2 + x[x > 0].sum(),
    ],
    ids=["numpy", "if", "if on progress", "list", "mask"],
)
def test_what_jax_cannot_trace_is_refused(untraceable):
    with pytest.raises(
        TypeError, match=r"asks for the values of its inputs.*: use jax\.numpy .* and jnp\.where for if"
    ):
        lo.verify_drift(untraceable)


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        (lambda x: None, "and returned None: end it with a return statement"),
        (lambda x: 0.0, r"given \(512,\) and returned \(\)"),
        (lambda x: jnp.zeros(x.shape, int), r"floating-point numbers, and returned int\d\d: compute it from log_ratio"),
        (lambda x: x > 9.0, "floating-point numbers, and returned bool: compute it from log_ratio"),
    ],
    ids=["nothing", "scalar", "integers", "truths"],
)
def test_what_is_no_array_of_floats_is_refused(returned, sentence):
    with pytest.raises(lo.DriftLawError, match=sentence):
        lo.verify_drift(lambda x, a, p: returned(x))


@pytest.mark.parametrize("reach", [0.0, -1.0, float("nan"), float("inf")])
def test_the_largest_log_ratio_is_positive_and_finite(reach):
    with pytest.raises(ValueError, match=r"max_log_ratio must be positive and finite, and is .*: give the largest"):
        lo.verify_drift(lo.DPO(), max_log_ratio=reach)


@pytest.mark.parametrize("draws", [-1, 1.5])
def test_the_draws_are_a_whole_number(draws):
    with pytest.raises(ValueError, match=r"num_draws must be a whole number, and is .*: give 1 or more, or 0"):
        lo.verify_drift(lo.DPO(), num_draws=draws)
