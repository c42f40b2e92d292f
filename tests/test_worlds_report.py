"""Claims about methods are of two levels: meta-seeds, then levels."""

import numpy as np
import pytest
import scipy.stats

from benchmarks import worlds

pytestmark = pytest.mark.slow

MEANS = {
    "lpg": (0.632, 0.618, 0.709),
    "groove": (0.641, 0.528, 0.376),
}  # by meta-seed, of benchmarks/results/worlds.json


def runs(name: str) -> list[np.ndarray]:
    """Scores [worlds, levels] in which only meta-seeds differ."""
    return [np.full((len(worlds.HELD_OUT), 4), mean) for mean in MEANS[name]]


def test_a_comparison_of_methods_is_over_meta_seeds():
    found = worlds.compare(runs("lpg"), runs("groove"))["gain"]
    welch = scipy.stats.ttest_ind(MEANS["lpg"], MEANS["groove"], equal_var=False).confidence_interval()
    assert tuple(found) == pytest.approx((0.138, *welch), abs=0.02)
    assert found.low < 0 < found.high


def test_restating_keeps_the_scores_and_names_the_steps_of_each_search():
    searches = {
        name: {
            "scores": [x.tolist() for x in runs(name)],
            "began_scores": [(0 * x).tolist() for x in runs(name)],
            "records": [{"env_steps": steps} for steps in (57, 72, 178)],
        }
        for name in MEANS
    }
    report = worlds.restate({"searches": searches, "levels": 4}, np.ones((len(worlds.HELD_OUT), 4)))
    assert report["levels"] == 4
    assert report["searches"]["lpg"]["scores"] == searches["lpg"]["scores"]
    assert report["searches"]["lpg"]["env_steps"] == [57, 72, 178]
    assert report["searches"]["lpg"]["iqm"].value == pytest.approx(0.632, abs=0.02)
    se = np.std(MEANS["lpg"], ddof=1) / np.sqrt(3)
    gain = report["searches"]["lpg"]["gain_over_its_beginning"]
    assert gain.high - gain.value == pytest.approx(scipy.stats.t.ppf(0.975, 2) * se, rel=0.05)
