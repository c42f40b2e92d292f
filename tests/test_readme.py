"""The README's tables are those that its results give."""

import numpy as np
import pytest

from benchmarks import readme


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda page: page.name)
def test_the_tables_are_up_to_date(page):
    text = page.read_text()
    assert readme.filled(text, readme.PAGES[page]()) == text


def test_a_table_without_a_place_is_refused():
    with pytest.raises(ValueError, match="must have <!-- drifts --> and <!-- /drifts --> once, and has 0"):
        readme.filled("<!-- drifts -->", {"drifts": "| a |"})


def test_claims_are_of_unseen_trials_where_the_clip_acts():
    """Breakout was searched on; in Acrobot nothing is cut, and LPO loses; CartPole's reference is of another budget."""
    trials = {
        ("Breakout-MinAtar", 262_144): (0.3, 0.0),
        ("Acrobot-v1", 131_072): (0.0, -100.0),
        ("CartPole-v1", 131_072): (0.3, 100.0),
        ("Asterix-MinAtar", 262_144): (0.1, 1.0),
    }
    rows, ratios = [], []
    for (env, steps), (cut, gain) in trials.items():
        for name in ("ppo", "lpo_2026_11"):
            key = {"env": env, "total_steps": steps, "objective": name}
            rows.append(key | {"final_returns": list(np.arange(8.0) / 8 + gain * (name == "lpo_2026_11"))})
            ratios.append(key | {"cut": cut})
    group = {"rows": rows, "ratios": ratios, "objectives": {"ppo": "", "lpo_2026_11": ""}}
    head, _, ppo, lpo = readme.claims(group).splitlines()
    assert "3 trials never searched on" in head
    assert "the 2 of them where PPO's clip cuts 0.1 % or more" in head
    assert "score, 1 such trials" in head
    assert ppo.startswith("| PPO | - | - |")
    assert lpo.startswith("| LPO (2026-11) | 0.67 [0.67, 0.67] | 1.00 [1.00, 1.00] |")


def test_the_tables_of_the_test_say_what_its_report_says():
    lengths = {f"{n:,} steps": [0.9, 0.8, 1.0] for n in readme.LENGTHS} | {"all": [0.7, 0.6, 0.8]}
    rows = [
        {"env": "Seaquest-MinAtar", "total_steps": 262_144, "objective": name, "final_returns": [gain, gain + 1.0] * 4}
        for name, gain in {"ppo": 0.0, "lpo": 1.0, "ta_lpo": -1.0}.items()
    ]
    report = {
        "seeds": 8,
        "objectives": {"ppo": "", "lpo": "", "ta_lpo": ""},
        "rows": rows,
        "better than ppo": {"lpo": lengths, "ta_lpo": lengths | {"all": [0.1, 0.0, 0.2]}},
        "better than one another": {"ta_lpo over lpo": lengths},
    }
    head, _, lpo, ta_lpo, pair = readme.pooled(report).splitlines()
    assert head.endswith("| 4,194,304 steps | all | environments not searched on |")
    assert "| 0.70 [0.60, 0.80] | 0.88 [" in lpo
    assert "| 0.10 [0.00, 0.20] | " in ta_lpo
    assert pair.startswith("| TA-LPO over LPO | 0.90 [0.80, 1.00] |")
    (row,) = readme.tested(report).splitlines()[2:]
    # A seed of LPO returns 1 or 2 and one of PPO 0 or 1: better in three pairs of four, and a tie in the fourth.
    assert "| 0.88 [" in row
    worlds = {"a2c": {"iqm": [1.0, 0.9, 1.1]}, "searches": {}}
    rejax = {
        "seeds": 10,
        "better than ppo": {"own PPO": {"x": [0.5, 0.4, 0.6]}, "lpo": {"9 steps, 4 games": [0.6, 0.5, 0.7]}},
    }
    lines = readme.found(report, worlds, rejax).splitlines()[2:]
    assert (
        lines[-1] == "| LPO | PPO of rejax, 9 steps, 4 games, 10 seeds | P(better than PPO) | 0.60 [0.50, 0.70] | 0.5 |"
    )
    assert lines[0] == "| LPO | test set, all 1 trials, 8 seeds | P(better than PPO) | 0.70 [0.60, 0.80] | 0.5 |"
    assert lines[4].startswith("| LPO | test set, environments not searched on, 8 seeds | P(better than PPO) | 0.88 [")
    assert lines[5].startswith("| TA-LPO | test set, all 1 trials, 8 seeds | P(better than PPO) | 0.10 [0.00, 0.20]")
    assert (
        lines[11]
        == "| TA-LPO | test set, 1 trials of 262,144 steps, 8 seeds | P(better than LPO) | 0.90 [0.80, 1.00] | 0.5 |"
    )
