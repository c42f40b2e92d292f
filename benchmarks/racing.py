"""What racing saves, and what it loses: `python -m benchmarks.racing`; ten minutes on two idle cores.

Candidates near PPO train in the same tasks with the same keys, as in `soft_clip_small`. Half of the tasks, in a random order, are
those of a generation; the other half say how good each candidate is (its mean rank there). Ways to spend lives:

    n lives             every candidate has n of the tasks, and is ranked by its mean rank
    racing p, n lives   the best share p of the candidates goes on from each task to the next (discover/searches/racing.py)

Of each it reports the lives that it takes, as a share of those of all candidates in all tasks, and, in the mean over orders of
the tasks with intervals over halves,

    correlation   of the ranks it gives with how good the candidates are
    gain          how good the best half by these ranks is, above the mean of all, in standard deviations of the candidates. The
                  i-th best of m counts with weight log(m + 1/2) - log(i), as in CMA-ES

A racing that is biased or noisy has a smaller gain.

Writes benchmarks/results/racing.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import numpy as np
import scipy.stats

from benchmarks.record import ROOT, provenance
from benchmarks.variance import fitness
from discover.results.statistics import Interval
from discover.runs.store import write_text
from discover.searches.racing import halve, sizes

ENVS = ("Breakout-MinAtar", "SpaceInvaders-MinAtar", "CartPole-v1")
SPLITS = 400


def ranks_of(f: np.ndarray) -> np.ndarray:
    """Mean over environments of ranks over candidates, in [-0.5, 0.5]: fitness f64[E, C, K] -> f64[K, C]."""
    ranks = scipy.stats.rankdata(f, axis=1)
    return ((ranks - 1) / (f.shape[1] - 1) - 0.5).mean(0).T


def raced(f: np.ndarray, share: float) -> np.ndarray:
    """The ranks that racing gives to candidates of fitness f64[E, C, K] in K tasks: f64[C]."""
    count, rounds = f.shape[1:]
    return halve(lambda racing, k: ranks_of(f[:, racing, k : k + 1])[0], count, share=share, rounds=rounds)


def weights(count: int) -> np.ndarray:
    """f64[C // 2]: those of CMA-ES, from the best on; their sum is 1."""
    found = np.log(count // 2 + 0.5) - np.log(np.arange(1, count // 2 + 1))
    return found / found.sum()


def quality(f: np.ndarray, shares: tuple[float, ...]) -> dict[str, dict[str, Any]]:
    """The table of fitness f64[E, C, K]."""
    rng, (count, tasks) = np.random.default_rng(0), f.shape[1:]
    half, every = tasks // 2, ranks_of(f)
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(SPLITS):
        order = rng.permutation(tasks)
        seen, unseen = order[:half], order[half:]
        truth = every[unseen].mean(0)
        for n in range(1, half + 1):
            ways = {f"{n} lives": every[seen[:n]].mean(0)}
            if n > 1:
                ways |= {f"racing {share:g}, {n} lives": raced(f[:, :, seen[:n]], share) for share in shares}
            for name, ranks in ways.items():
                best = np.argsort(-ranks, kind="stable")[: count // 2]
                gain = (weights(count) @ truth[best] - truth.mean()) / truth.std()
                found.setdefault(name, []).append((float(scipy.stats.spearmanr(ranks, truth)[0]), float(gain)))
    table = {}
    for name, pairs in found.items():
        n = int(name.split()[-2])
        spent = sum(sizes(count, float(name.split()[1][:-1]), n)) if name.startswith("racing") else n * count
        columns = (Interval(float(np.mean(x)), *map(float, np.percentile(x, (2.5, 97.5)))) for x in np.transpose(pairs))
        table[name] = {"lives of a candidate": spent / count} | dict(zip(("correlation", "gain"), columns, strict=True))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=list(ENVS))
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--tasks", type=int, default=12)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.75], help="of the candidates that go on")
    args = parser.parse_args()
    if args.candidates < 4 or args.candidates % 2 or args.tasks < 4 or not all(0 < p < 1 for p in args.shares):
        parser.error("racing needs an even number of at least 4 candidates, at least 4 tasks, and shares in (0, 1).")
    found = fitness(tuple(args.envs), args.candidates, args.tasks)[:, 1:]
    found = found[:, :, np.isfinite(found).all((0, 1))]
    report: dict[str, Any] = provenance() | {
        "candidates": args.candidates,
        "tasks": args.tasks,
        "envs": args.envs,
        "ways": quality(found, tuple(args.shares)),
        "fitness": found.round(3).tolist(),
    }
    text = json.dumps(report, indent=1, default=lambda x: x._asdict())
    write_text(ROOT / "benchmarks/results/racing.json", text + "\n")
    for name, row in report["ways"].items():
        print(
            f"{name}: {row['lives of a candidate']:.2f} lives a candidate, "
            f"correlation {row['correlation']:.2f}, gain {row['gain']:.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
