"""Statistics of returns agree with SciPy, with other people's formulas, and with values worked out by hand."""

import itertools

import numpy as np
import pytest
import scipy.stats

from discover import statistics as st

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


def test_the_interval_of_a_small_sample_is_that_of_all_its_resamples():
    sample = np.array([0.0, 1.0, 5.0])
    every = [np.mean(draw) for draw in itertools.product(sample, repeat=3)]
    found = st.interval(st.mean, sample, level=0.8)
    low, high = np.quantile(every, [0.1, 0.9], method="nearest")
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
