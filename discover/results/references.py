"""Returns of a random policy and of PPO, per environment: the zero and the one of a score.

The numbers are data, measured by `python -m benchmarks.references` and kept with where they came from.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

PATH = Path(__file__).with_name("references.json")


@cache
def _load() -> dict[str, Any]:
    return json.loads(PATH.read_text())


def of(env: str) -> dict[str, Any] | None:
    """What is recorded of an environment: random, ppo, total_steps, and where they were measured; None if nothing is, or if PPO
    is no better than chance there, so it has no score."""
    row = _load()["envs"].get(env)
    if row is None or not row["ppo"] - row["random"] > 0.01 * abs(row["random"]):
        return None
    return row


def normalise(env: str, returns: np.ndarray) -> np.ndarray:
    """(R - random) / (PPO - random), both of the recorded means: 0 is a random policy, 1 PPO at the budget of its record.

    Raises ValueError where there are no references.
    """
    row = of(env)
    if row is None:
        raise ValueError(f"no references are recorded for {env}, only for {', '.join(filter(of, _load()['envs']))}.")
    return (np.asarray(returns, np.float64) - row["random"]) / (row["ppo"] - row["random"])
