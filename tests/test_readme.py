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
