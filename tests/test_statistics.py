"""Statistics of returns agree with SciPy, with other people's formulas, and with values worked out by hand."""

import numpy as np
import pytest
import scipy.stats

from discover.results import statistics as st

SCORES = np.random.default_rng(0).gamma(2.0, size=(5, 11))
OTHERS = np.random.default_rng(1).gamma(2.2, size=(5, 13))


def test_the_interquartile_mean_is_scipys_trimmed_mean():
    assert st.iqm(SCORES) == pytest.approx(scipy.stats.trim_mean(SCORES, 0.25, axis=None), rel=1e-12)


def test_the_interquartile_mean_by_hand():
    assert st.iqm(np.array([[9.0, 1.0, 2.0, 3.0, 100.0, -50.0, 4.0, 5.0]])) == (2 + 3 + 4 + 5) / 4


def test_a_seed_without_a_return_is_the_worst():
    assert st.iqm(np.array([[np.nan, 1.0, 2.0, 3.0]])) == 1.5
    assert st.probability_of_improvement(np.array([[np.nan, 3.0]]), np.array([[1.0, 2.0]])) == 0.5


def test_the_median_is_over_environments_of_means():
    assert st.median(np.array([[1.0, 3.0], [10.0, 20.0], [5.0, 5.0]])) == 5.0


def test_the_optimality_gap_by_hand():
    assert st.optimality_gap(np.array([[0.5, 2.0], [1.0, 0.0]])) == pytest.approx((0.5 + 0 + 0 + 1) / 4)


def test_the_probability_of_improvement_is_mann_whitneys_statistic():
    ours, theirs = np.round(SCORES), np.round(OTHERS)  # with ties
    expected = [scipy.stats.mannwhitneyu(x, y).statistic / (x.size * y.size) for x, y in zip(ours, theirs, strict=True)]
    assert st.probability_of_improvement(ours, theirs) == pytest.approx(np.mean(expected), rel=1e-12)


def test_the_interval_of_a_mean_is_scipys():
    ours = st.interval(st.mean, SCORES[:1])
    theirs = scipy.stats.bootstrap(
        (SCORES[0],), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), rel=0.02)
    assert ours.value == SCORES[0].mean()


def test_resampling_stays_within_an_environment():
    """Two environments of constant, different scores leave nothing to resample."""
    found = st.interval(st.mean, np.array([[1.0] * 4, [5.0] * 4]))
    assert (found.low, found.value, found.high) == (3.0, 3.0, 3.0)


def test_the_interval_is_that_of_all_resamples():
    """Of three ones among eight, a resample's sum is binomial(8, 3 / 8)."""
    found = st.interval(st.mean, np.array([1.0] * 3 + [0.0] * 5), level=0.8)
    low, high = scipy.stats.binom.ppf([0.1, 0.9], 8, 3 / 8) / 8
    assert (found.low, found.high) == (low, high)


def test_what_both_share_drops_out_of_a_paired_interval():
    task = np.random.default_rng(3).normal(0, 100, (1, 16))
    found = st.interval(st.paired_improvement, task + 1.0, task, paired=True)
    assert found.low == pytest.approx(1.0)
    assert found.high == pytest.approx(1.0)
    apart = st.interval(st.paired_improvement, task + 1.0, task)
    assert apart.high - apart.low > 10.0


def test_of_a_single_seed_no_interval_is_told():
    with pytest.raises(ValueError, match="at least 2 seeds"):
        st.interval(st.mean, np.array([1.0]))
    assert st.iqm_interval(np.array([2.0])) == (2.0, 2.0, 2.0)


def test_memory_stays_small_and_blocks_change_nothing():
    ours, theirs = (np.random.default_rng(i).normal(size=(2, 200)) for i in (0, 1))
    found = st.interval(st.probability_of_improvement, ours, theirs)  # 5000 x 2 x 200 x 200 at once would be 3 GB
    assert found.low < found.value < found.high


def test_without_a_return_on_either_side_nobody_is_ahead():
    assert st.paired_improvement(np.array([[np.nan, 2.0]]), np.array([[np.nan, 1.0]])) == 0.5
    assert st.paired_improvement(np.array([[np.nan, 2.0]]), np.array([[0.0, 1.0]])) == -np.inf


def test_scores_of_different_environments_are_refused():
    with pytest.raises(ValueError, match="of the same environments"):
        st.interval(st.probability_of_improvement, SCORES, OTHERS[:1])


def test_paired_scores_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        st.interval(st.paired_improvement, SCORES, OTHERS, paired=True)


def test_an_interval_is_written_with_one_digit_unless_asked():
    found = st.Interval(1.234, 0.5, 2.0)
    assert str(found) == f"{found}" == "1.2 [0.5, 2.0]"
    assert f"{found:.2f}" == "1.23 [0.50, 2.00]"


def test_the_interval_of_few_seeds_is_students():
    few = SCORES[:1, :5]
    found = st.interval(st.mean, few)
    low, high = scipy.stats.ttest_1samp(few[0], 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03 * (high - low))


def test_the_interval_of_a_difference_of_few_seeds_is_welchs():
    ours, theirs = SCORES[0, :4], 3 * OTHERS[0, :6]
    found = st.interval(lambda x, y: st.mean(x) - st.mean(y), ours, theirs)
    welch = scipy.stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx(tuple(welch), abs=0.03 * (welch.high - welch.low))


def test_intervals_of_few_seeds_cover_what_they_say():
    """The percentile bootstrap of 3 seeds covers 74 %."""
    rng = np.random.default_rng(5)
    held = [found.low <= 0 <= found.high for found in (st.interval(st.iqm, rng.normal(size=3)) for _ in range(300))]
    assert np.mean(held) > 0.91  # 95 % less three standard errors


def test_the_interval_of_a_probability_has_a_width_where_every_seed_is_ahead():
    """By hand: p = 1, m = n = 3 gives (1 - q) = z^2 q (1 + 2 ((1 - q) / (2 - q) + q / (1 + q))) / 9 at the lower limit."""
    found = st.interval(st.probability_of_improvement, np.array([4.0, 5.0, 6.0]), np.array([1.0, 2.0, 3.0]))
    q = found.low
    assert (found.value, found.high) == (1.0, 1.0)
    right = 1.959964**2 * q / 9 * (1 + 2 * ((1 - q) / (2 - q) + q / (1 + q)))
    assert 1 - q == pytest.approx(right, abs=1e-3)


def test_a_seed_without_a_return_leaves_few_seeds_the_bootstrap():
    assert st.interval(st.iqm, np.array([np.nan, 1.0, 2.0])) == (-np.inf, -np.inf, 2.0)


def test_the_interval_over_runs_of_a_method_is_welchs_where_tasks_do_not_matter():
    """The scores of a run are the same on every item, so that only runs differ."""
    ours, theirs = [0.632, 0.618, 0.709], [0.641, 0.528, 0.376]
    runs = [[np.full((2, 6), mean) for mean in means] for means in (ours, theirs)]
    found = st.over_runs(lambda x, y: x.mean() - y.mean(), *runs)
    welch = scipy.stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx(tuple(welch), abs=0.02)
    assert found.low < 0 < found.high


def test_the_interval_over_runs_is_that_of_items_where_runs_do_not_matter():
    items = np.random.default_rng(6).normal(size=(1, 9))
    found = st.over_runs(lambda x: x.mean(), [items] * 3)
    se = np.std(items, ddof=1) / 3
    assert found.high - found.value == pytest.approx(scipy.stats.t.ppf(0.975, 8) * se, rel=0.03)


def test_over_many_runs_the_interval_is_a_bootstrap_of_both_levels():
    rng = np.random.default_rng(7)
    runs = [np.full((1, 5), mean) for mean in rng.normal(size=9)]
    theirs = scipy.stats.bootstrap(
        (np.array([run[0, 0] for run in runs]),), np.mean, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    found = st.over_runs(lambda x: x.mean(), runs)
    assert (found.low, found.high) == pytest.approx(tuple(theirs), abs=0.05)


def test_one_run_of_a_method_is_refused():
    with pytest.raises(ValueError, match="at least 2 of each method"):
        st.over_runs(lambda x: x.mean(), [SCORES])
