"""Objectives read off a response surface: `python -m benchmarks.surface`; resumable, an hour on two idle cores.

A design of experiments (Box and Wilson 1951, J. Royal Stat. Soc. B 13). Candidates are PPO with all sixteen numbers of a soft
clip and its schedules drawn from N(0, 0.35^2), and as many numbers that are multiplied by n/N (`learned_objectives.SoftClip`,
`ScheduledMirror`). Each trains one agent in each game, at one or more lengths N of life: the candidates of a longer life are the
first of those of a shorter one, and 40 more. A regression gives the effect of every number in every game and length:

    y_i = c_0 + beta . z_i + gamma . z'_i + delta . |z_i + z'_i / 2| + e_i

y are the normal scores of the final returns (quantiles of the normal distribution in their order). z are the numbers in units of
0.35, z' those of n/N, |.| the size at mid-life of those of which only the size counts. An effect is a sum of four normal parts:
one of all games and lengths, one of the game, one of the length, one of this game at this length. Their variances and that of e
are those of the largest marginal likelihood (a Gaussian process with linear kernels). The report has effects divided by s, below.

A family is the set of numbers that may move, and what they may depend on. Of a family the objective x is taken that maximises

    mean over games and lengths of Phi((beta . x(N) + gamma . x' + delta . |x(N) + x'/2|) / (sqrt(2) s))

within ||x(N)||^2 + ||x'||^2 / 3 <= R^2, where x(N) = a + c (log10 N - 5.5) and s is the deviation of the residuals. This is the
predicted probability that a seed returns more than one of PPO. All families are read off the same lives.

Cells and objectives are kept in benchmarks/searches/surface. Writes benchmarks/results/surface.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.stats

import learned_objectives as lo
from benchmarks.record import ROOT, provenance
from benchmarks.sensitivity import EVEN, NAMES, SIGMA, draws, problem_of, returns
from discover.runs.store import write_text
from discover.searches.families import SoftClipConfig

ENVS = ("Breakout-MinAtar", "SpaceInvaders-MinAtar", "Asterix-MinAtar")
PARTS = {65_536: (128,), 262_144: (64,), 1_048_576: (40, 40)}  # candidates, by length of life
SEED = 78
PPO = [NAMES.index(x) for x in ("width (A > 0)", "width (A < 0)", "entropy_coef", "value_coef", "lambda", "value_clip")]
RADII = (1.5, 2.5)  # R, in units of SIGMA


@dataclass(frozen=True)
class Family:
    """Which numbers may move, and whether with log10 N and n/N."""

    numbers: tuple[int, ...]
    time_aware: bool


EVERY = tuple(range(len(NAMES)))
FAMILIES = {
    "tuned_ppo": Family(tuple(PPO), False),
    "ta_tuned_ppo": Family(tuple(PPO), True),
    "clip": Family(EVERY, False),
    "ta_clip": Family(EVERY, True),
}


FAMILY = SoftClipConfig(time_aware=True, schedules=True)


def measure(steps: int, count: int, part: int) -> tuple[np.ndarray, np.ndarray]:
    """(numbers f64[C, 2, 16] in units of SIGMA, constant and of n/N; final returns f64[C, E])."""
    problem = problem_of(FAMILY, ENVS, steps)
    # The row of log10 N stays zero: lengths are compared, and do not vary within a cell.
    drawn = [z.at[:, 2].set(0.0) for z in draws(problem, count, jax.random.fold_in(jax.random.key(SEED), part))]
    numbers = np.concatenate([np.asarray(z, np.float64)[:, :2].reshape(count, 2, -1) for z in drawn], axis=2)
    return numbers, returns(problem, drawn, problem.key("step", part))


def cells(place: Path) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """By length of life: (numbers f64[C, 2, 16], final returns f64[C, E]), from disk where they are there."""
    place.mkdir(parents=True, exist_ok=True)
    found = {}
    for steps, counts in PARTS.items():
        parts = []
        for part, count in enumerate(counts):
            path = place / f"{steps}-{part}.npz"
            if not path.exists():
                print(f"{count} candidates of {steps:,} environment steps in {len(ENVS)} games", flush=True)
                z, f = measure(steps, count, part)
                np.savez(path, Z=z, f=f)
            with np.load(path) as cell:
                parts.append((cell["Z"].astype(np.float64), cell["f"].astype(np.float64)))
        found[steps] = tuple(np.concatenate(x) for x in zip(*parts, strict=True))
    return found


def features(z: np.ndarray) -> np.ndarray:
    """f64[C, 2, 16] -> f64[C, 16 + 16 + len(EVEN)]: the constant numbers, those of n/N, and absolute values at mid-life."""
    return np.concatenate([z[:, 0], z[:, 1], np.abs(z[:, 0] + 0.5 * z[:, 1])[:, EVEN]], axis=1)


@dataclass(frozen=True)
class Surface:
    """The regression of one game and length. `effect` of features, in deviations of the residuals."""

    effect: np.ndarray
    explained: float  # share of the variance of left-out candidates


def normal_scores(values: np.ndarray) -> np.ndarray:
    """f64[C]: quantiles of the normal distribution in the order of the values, so that an agent that collapsed is no outlier."""
    return scipy.stats.norm.ppf((scipy.stats.rankdata(values) - 0.5) / len(values))


def fitted(cells: Mapping[tuple[str, int], tuple[np.ndarray, np.ndarray]]) -> dict[tuple[str, int], Surface]:
    """The regressions of all cells together: numbers f64[C, 2, 16] and returns f64[C] by game and length."""
    known = {cell: (z[np.isfinite(f)], f[np.isfinite(f)]) for cell, (z, f) in cells.items()}
    x = np.concatenate([(rows := features(z)) - rows.mean(0) for z, _ in known.values()])
    y = np.concatenate([normal_scores(f) for _, f in known.values()])
    game = np.concatenate([[env] * len(f) for (env, _), (_, f) in known.items()])
    length = np.concatenate([[n] * len(f) for (_, n), (_, f) in known.items()])
    alike = [np.ones((len(y), len(y))), game[:, None] == game, length[:, None] == length]
    alike.append(alike[1] & alike[2])
    products = x @ x.T

    def posterior(variances):
        shared = np.einsum("k,kij->ij", variances[:-1], np.stack(alike))
        inverse = np.linalg.inv(shared * products + variances[-1] * np.eye(len(y)))
        return shared, inverse, inverse @ y

    def unlikelihood(log_variances):
        _, inverse, weights = posterior(np.exp(log_variances))
        return 0.5 * (y @ weights - np.linalg.slogdet(inverse)[1])

    found = scipy.optimize.minimize(
        unlikelihood, np.log([0.01, 0.01, 0.01, 0.01, 0.6]), method="L-BFGS-B", options={"maxiter": 30}
    )
    shared, inverse, weights = posterior(np.exp(found.x))
    left_out = weights / np.diag(inverse)  # errors of the predictions of candidates from all others
    surfaces = {}
    for env, n in known:
        mine = (game == env) & (length == n)
        effect = (shared[mine][0] * weights) @ x
        noise = left_out[mine].std()
        surfaces[env, n] = Surface(effect / noise, 1.0 - float((left_out[mine] ** 2).sum() / (y[mine] ** 2).sum()))
    return surfaces


def better(surface: Surface, constant: np.ndarray, late: np.ndarray) -> float:
    """The predicted probability that a seed under these numbers returns more than one of PPO."""
    gain = features(np.stack([constant, late])[None])[0] @ surface.effect
    return float(scipy.stats.norm.cdf(gain / np.sqrt(2.0)))


def unpack(family: Family, x: np.ndarray) -> np.ndarray:
    """f64[3, 16]: rows 1, n/N and log10 N - 5.5 of the numbers."""
    rows = np.zeros((3, len(NAMES)))
    shape = (3 if family.time_aware else 1, len(family.numbers))
    rows[: shape[0], list(family.numbers)] = x.reshape(shape)
    return rows


def at_length(rows: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(constant numbers, those of n/N) in lives of this length."""
    return rows[0] + rows[2] * (np.log10(steps) - 5.5), rows[1]


def read_off(family: Family, surfaces: dict[tuple[str, int], Surface], radius: float) -> np.ndarray:
    """The rows f64[3, 16] of the family that maximise the mean probability within the radius, in units of SIGMA."""
    lengths = sorted({steps for _, steps in surfaces})
    size = len(family.numbers) * (3 if family.time_aware else 1)

    def loss(x):
        rows = unpack(family, x)
        return -np.mean([better(s, *at_length(rows, steps)) for (_, steps), s in surfaces.items()])

    def room(x):
        rows = unpack(family, x)
        pairs = [at_length(rows, steps) for steps in lengths]
        return np.array([radius**2 - (a @ a) - (b @ b) / 3.0 for a, b in pairs])

    rng = np.random.default_rng(0)
    tries = [
        scipy.optimize.minimize(
            loss,
            0.1 * rng.normal(size=size),
            method="SLSQP",
            constraints={"type": "ineq", "fun": room},
            options={"maxiter": 200},
        )
        for _ in range(4)
    ]
    return unpack(family, min(tries, key=lambda found: found.fun).x)


def objective_of(family: Family, rows: np.ndarray, template: lo.ScheduledMirror) -> lo.ScheduledMirror:
    """The objective of rows f64[3, 16] in units of SIGMA."""
    values = jnp.asarray(SIGMA * rows, jnp.float32)
    if not family.time_aware:
        drift = lo.SoftClip.create(epsilon=template.drift.epsilon).replace(numbers=values[:1, :12].reshape(1, 2, 6))
        return template.replace(drift=drift, numbers=values[:1, 12:], time_aware=False)
    return template.replace(
        drift=template.drift.replace(numbers=values[:, :12].reshape(3, 2, 6)), numbers=values[:, 12:]
    )


def row_of(env: str, steps: int, surface: Surface, count: int) -> dict[str, Any]:
    named = [*NAMES, *(f"n/N {name}" for name in NAMES), *(f"|{NAMES[j]}|" for j in EVEN)]
    return {
        "env": env,
        "total_steps": steps,
        "candidates": count,
        "explained": round(surface.explained, 3),
        "effects": {name: round(float(e), 3) for name, e in zip(named, surface.effect, strict=True)},
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--place", type=Path, default=ROOT / "benchmarks/searches/surface", help="of cells and objectives"
    )
    args = parser.parse_args(argv)
    found = cells(args.place)
    surfaces = fitted({(env, n): (z, f[:, e]) for n, (z, f) in found.items() for e, env in enumerate(ENVS)})
    report: dict[str, Any] = provenance() | {"seed": SEED, "sigma": SIGMA, "families": {}}
    report["rows"] = [row_of(env, n, s, len(found[n][0])) for (env, n), s in surfaces.items()]
    template = problem_of(FAMILY, ENVS, min(PARTS)).template
    for name, family in FAMILIES.items():
        for radius in RADII:
            rows = read_off(family, surfaces, radius)
            predicted = {f"{env}, {n:,}": round(better(s, *at_length(rows, n)), 3) for (env, n), s in surfaces.items()}
            label = f"{name}-{radius:g}"
            lo.save(objective_of(family, rows, template), args.place / f"{label}.safetensors")
            report["families"][label] = {
                "predicted P(better than PPO)": predicted,
                "mean": round(float(np.mean(list(predicted.values()))), 3),
                "numbers": {n: [round(SIGMA * x, 3) for x in column] for n, column in zip(NAMES, rows.T, strict=True)},
            }
            print(f"{label}: predicted P(better than PPO) {report['families'][label]['mean']:.3f}", flush=True)
    write_text(ROOT / "benchmarks/results/surface.json", json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
