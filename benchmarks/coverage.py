"""How often do 95% intervals of few seeds cover the truth? `python -m benchmarks.coverage`, by simulation.

Seeds are drawn from a distribution whose truth is known; counted is how often the interval holds it. Compared are the percentile
bootstrap and `discover.results.statistics.interval`, which leaves it below 8 seeds and for a probability of improvement in one
environment. Writes benchmarks/results/coverage.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
from scipy.special import ndtri

from benchmarks.record import ROOT, provenance
from discover.results import statistics

REPEATS = 1000
SEEDS = (2, 3, 4, 5, 6, 7, 8, 10)
SAMPLES = 1000  # of each bootstrap here

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
SHAPES: dict[str, Draw] = {
    "normal": lambda rng, size: rng.normal(size=size),
    "gamma(2)": lambda rng, size: rng.gamma(2.0, size=size),
    "two modes": lambda rng, size: rng.normal(size=size) + 4.0 * (rng.random(size) < 0.3),
}


def percentile(
    statistic: Callable[..., np.ndarray], *sets: np.ndarray, rng: np.random.Generator
) -> tuple[float, float]:
    drawn = [x[None, rng.integers(0, x.size, (SAMPLES, x.size))].swapaxes(0, 1) for x in sets]
    low, high = np.quantile(statistic(*drawn), [0.025, 0.975], method="nearest")
    return float(low), float(high)


def coverage(
    statistic: Callable[..., np.ndarray], draw: Callable[..., list[np.ndarray]], truth: float, seeds: int
) -> dict:
    rng = np.random.default_rng(seeds)
    held = np.zeros(2)
    for repeat in range(REPEATS):
        sets = draw(rng, seeds)
        _, *ours = statistics.interval(statistic, *sets, seed=repeat)
        for i, (low, high) in enumerate((percentile(statistic, *sets, rng=rng), ours)):
            held[i] += low <= truth <= high
    return {"seeds": seeds, "percentile": held[0] / REPEATS, "interval": held[1] / REPEATS}


def main() -> None:
    rows = []
    for name, shape in SHAPES.items():
        truth = float(statistics.iqm(shape(np.random.default_rng(0), (1, 4_000_000))))
        for seeds in SEEDS:
            found = coverage(statistics.iqm, lambda rng, n, shape=shape: [shape(rng, (n,))], truth, seeds)
            rows.append({"statistic": "IQM", "of": name} | found)
            print(rows[-1], flush=True)
    for truth in (0.5, 0.8, 0.95):
        ahead = float(ndtri(truth) * np.sqrt(2))
        for seeds in SEEDS:
            found = coverage(
                statistics.probability_of_improvement,
                lambda rng, n, ahead=ahead: [rng.normal(size=n) + ahead, rng.normal(size=n)],
                truth,
                seeds,
            )
            rows.append({"statistic": f"probability of improvement {truth}", "of": "normal"} | found)
            print(rows[-1], flush=True)
    report = provenance() | {"repeats": REPEATS, "rows": rows}
    (ROOT / "benchmarks/results/coverage.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
