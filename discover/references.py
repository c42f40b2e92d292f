"""What a random policy and PPO come to, per environment: the zero and the one of a score.

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


def origin() -> dict[str, Any]:
    """Date, commit, machine and versions of the measurement."""
    return {name: value for name, value in _load().items() if name != "envs"}


def known(env: str) -> bool:
    """Whether there are references for an environment."""
    return env in _load()["envs"]


def normalise(env: str, returns: np.ndarray) -> np.ndarray:
    """(R - random) / (PPO - random), both of the recorded means: 0 is a random policy, 1 PPO at the budget of its record.

    Raises ValueError where there are no references.
    """
    if not known(env):
        raise ValueError(f"no references are recorded for {env}, only for {', '.join(_load()['envs'])}.")
    row = _load()["envs"][env]
    return (np.asarray(returns, np.float64) - row["random"]) / (row["ppo"] - row["random"])
