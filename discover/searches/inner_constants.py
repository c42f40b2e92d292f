"""Other constants for the best programs of a generation: a short search within a generation of the search for programs."""

from __future__ import annotations

import math

import numpy as np

from discover.searches.proposers import nodes_of, text_of
from learned_objectives.expressions import LARGEST

INNER = 1_000_003  # folded into a generation's keys: the lives that choose constants are not those that score them


def varied(text: str, rng: np.random.Generator, count: int, spread: float) -> list[str]:
    """`count` texts with other constants: c e^(spread x), x ~ N(0, 1), with 3 digits. Constants that are zero stay."""
    nodes = nodes_of(text)
    return [text_of([_moved(x, rng, spread) if isinstance(x, float) else x for x in nodes]) for _ in range(count)]


def _moved(constant: float, rng: np.random.Generator, spread: float) -> float:
    value = constant * math.exp(spread * rng.normal())
    return float(f"{np.clip(value, -LARGEST, LARGEST):.3g}") if constant else constant
