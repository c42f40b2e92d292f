"""Objectives read off a response surface: `python -m benchmarks.surface`; resumable, an hour a set of lives on two cores.

A design of experiments (Box and Wilson 1951, J. Royal Stat. Soc. B 13). Candidates are PPO with numbers of a soft clip and its
schedules (`learned_objectives.SoftClip`, `ScheduledMirror`) drawn at random: constants and multiples of n/N from N(0, 0.35^2),
and in some sets of lives multiples of the agent's statistics from N(0, 0.15^2). Each trains one agent in each game, at one or
more lengths N of life. A regression gives the effect of every number in every game and length:

    y_i = c_0 + beta . z_i + gamma . z'_i + sum_k eta_k . z_ki + delta . |z_i + z'_i / 2| + e_i

y are the normal scores of the final returns (quantiles of the normal distribution in their order). z are the constants, z' the
multiples of n/N and z_k those of statistic k, all in units of 0.35. |.| is the size at mid-life of those of which only the size
counts. An effect is a sum of four normal parts: one of all games and lengths, one of the game, one of the length, one of this
game at this length. Their variances and that of e are those of the largest marginal likelihood (a Gaussian process with linear
kernels). The report has effects divided by s, below.

A family is the set of numbers that may move, and what they may depend on. Of a family the objective x is taken that maximises

    mean over games and lengths of Phi((the sum above, at x) / (sqrt(2) s)),    x(N) = a + c (log10 N - 5.5) in place of z

within two distances from PPO. The mean of ||x(N) + x' n/N + sum_k x_k s_k||^2 over lives of PPO is at most 3^2, where s_k are the
statistics in these lives: the numbers themselves stay near PPO's. The sum of the squares of x(N), x' and x_k, each in deviations
of its draws, is at most 3.5^2: the objective stays among the candidates. s is the deviation of the errors in predicting
each row from all others. The mean above is the predicted probability that a seed returns more than one of PPO. It is optimistic:
the uncertainty of the effects and the choice of the maximum are not in it.

`SETS` has the sets of lives; each is an independent draw. Families are read off each set and off all of them together, where the
set has what they depend on. Cells and objectives are kept in benchmarks/searches. Writes benchmarks/results/surface.json.
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
from discover.agents.setups import MINATAR as MINATAR_SETUP
from discover.runs.store import write_text
from discover.searches.families import SoftClipConfig
from learned_objectives import inputs

MINATAR = ("Breakout-MinAtar", "SpaceInvaders-MinAtar", "Asterix-MinAtar")
EVERY = tuple(range(len(NAMES)))
PPO = tuple(
    NAMES.index(x) for x in ("width (A > 0)", "width (A < 0)", "entropy_coef", "value_coef", "lambda", "value_clip")
)
INPUTS = inputs.names(time_aware=True, sees_statistics=True)
TIME, LENGTH, STATISTICS = 1, 2, slice(3, len(INPUTS))  # rows of numbers: those of n/N, log10 N - 5.5 and statistics
STATISTICS_SIGMA = 0.15
RADIUS = 3.0  # of the numbers over a life, in units of SIGMA; the draws have 2.8 without statistics, 3.6 with them
REACH = 3.5  # in deviations of the draws
MOMENTS = 8  # of a life at which the statistics of PPO are measured

Returns = tuple[np.ndarray, np.ndarray]  # of one set of lives: numbers f64[C, 7, 16] in units of SIGMA, returns f64[C]


@dataclass(frozen=True)
class Cell:
    """Lives of one length in environments of one setup. Every part has candidates and a file of its own."""

    envs: tuple[str, ...]
    steps: int
    parts: tuple[int, ...]  # candidates

    def file(self, part: int) -> str:
        name = "" if self.envs == MINATAR else self.envs[0].split("/")[-1] + "-"
        return f"{name}{self.steps}-{part}.npz"


@dataclass(frozen=True)
class Lives:
    """One set of lives. All its cells draw the candidates of a part alike."""

    seed: int
    numbers: tuple[int, ...]  # those that are drawn
    statistics: bool  # whether multiples of the statistics are drawn as well
    cells: tuple[Cell, ...]

    @property
    def family(self) -> SoftClipConfig:
        return SoftClipConfig(time_aware=True, sees_statistics=self.statistics, schedules=True)

    def has(self, family: Family) -> bool:
        """Whether a family can be read off these lives: they drew its numbers, and what these depend on."""
        return set(family.numbers) <= set(self.numbers) and self.statistics >= family.statistics

    def measure(self, cell: Cell, part: int) -> tuple[np.ndarray, np.ndarray]:
        """(numbers f64[C, 7, 16] in units of SIGMA, final returns f64[C, E])."""
        problem = problem_of(self.family, cell.envs, cell.steps)
        key = jax.random.fold_in(jax.random.key(self.seed), part)
        drawn = draws(problem, cell.parts[part], key)
        scale = np.ones(len(INPUTS))
        scale[LENGTH] = 0.0  # lengths are compared, and do not vary within a cell
        scale[STATISTICS] = STATISTICS_SIGMA / SIGMA
        mask = np.isin(np.arange(len(NAMES)), self.numbers)
        widths = np.cumsum([0] + [int(np.prod(z.shape[2:])) for z in drawn])
        drawn = [
            z * np.multiply.outer(scale[: z.shape[1]], mask[a:b].reshape(z.shape[2:]))
            for z, a, b in zip(drawn, widths[:-1], widths[1:], strict=True)
        ]
        numbers = np.concatenate([np.asarray(z, np.float64).reshape(*z.shape[:2], -1) for z in drawn], axis=2)
        return padded(numbers), returns(problem, drawn, problem.key("step", part))

    def returns(self, place: Path) -> dict[tuple[str, int], Returns]:
        """By game and length; measured where it is not on disk."""
        place.mkdir(parents=True, exist_ok=True)
        found = {}
        for cell in self.cells:
            parts = []
            for part, count in enumerate(cell.parts):
                path = place / cell.file(part)
                if not path.exists():
                    print(
                        f"{count} candidates of {cell.steps:,} environment steps in {', '.join(cell.envs)}", flush=True
                    )
                    z, f = self.measure(cell, part)
                    whole = path.with_suffix(".part.npz")  # a killed run leaves no half of a cell
                    np.savez(whole, Z=z, f=f)
                    whole.replace(path)
                with np.load(path) as kept:
                    parts.append((padded(kept["Z"].astype(np.float64)), kept["f"].astype(np.float64)))
            z, f = (np.concatenate(x) for x in zip(*parts, strict=True))
            found |= {(env, cell.steps): (z, f[:, e]) for e, env in enumerate(cell.envs)}
        return found


def padded(numbers: np.ndarray) -> np.ndarray:
    """f64[C, R, 16] -> f64[C, 7, 16]: rows that were not drawn are zero. R = 2 is the file of constants and n/N."""
    rows = np.zeros((len(numbers), len(INPUTS), numbers.shape[2]))
    rows[:, : numbers.shape[1]] = numbers
    return rows


SETS = {
    "1": Lives(
        78,
        EVERY,
        False,
        (Cell(MINATAR, 2**16, (128,)), Cell(MINATAR, 2**18, (64,)), Cell(MINATAR, 2**20, (40, 40))),
    ),
    "2": Lives(
        79,
        PPO,
        True,
        (
            *(Cell(MINATAR, 2**16, (96,)), Cell(MINATAR, 2**18, (64,)), Cell(MINATAR, 2**20, (32, 32))),
            *(Cell(("Reacher-misc",), 2**18, (64,)), Cell(("Reacher-misc",), 2**20, (64,))),
            *(Cell(("brax/hopper",), 2**18, (64,)), Cell(("brax/hopper",), 2**20, (48,))),
        ),
    ),
}


@dataclass(frozen=True)
class Family:
    """Which numbers may move, and whether with n/N and log10 N, and with the agent's statistics.

    With `lengths`, it is read off lives of these lengths alone, and does not depend on log10 N."""

    numbers: tuple[int, ...]
    time_aware: bool = False
    statistics: bool = False
    lengths: tuple[int, ...] = ()

    @property
    def rows(self) -> list[int]:
        """Those of `INPUTS` on which its numbers depend."""
        every = range(len(INPUTS))
        return [0, *((TIME, LENGTH) if self.time_aware else ()), *(every[STATISTICS] if self.statistics else ())]

    def covers(self, steps: int) -> bool:
        """Whether it is read off lives of this length."""
        return not self.lengths or steps in self.lengths

    @property
    def moving(self) -> list[int]:
        """Those of `rows` that are read off."""
        return [row for row in self.rows if row != LENGTH or not self.lengths]


FAMILIES = {
    "tuned_ppo": Family(PPO),
    "ta_tuned_ppo": Family(PPO, time_aware=True),
    "clip": Family(EVERY),
    "ta_clip": Family(EVERY, time_aware=True),
    "statistics_tuned_ppo": Family(PPO, statistics=True),
    "ta_statistics_tuned_ppo": Family(PPO, time_aware=True, statistics=True),
    "short_ta_tuned_ppo": Family(PPO, time_aware=True, lengths=(2**16, 2**18)),
    "long_ta_tuned_ppo": Family(PPO, time_aware=True, lengths=(2**20,)),
}


def features(z: np.ndarray) -> np.ndarray:
    """f64[C, 7, 16] -> f64[C, 6 x 16 + len(EVEN)]: the numbers of all inputs but log10 N, and absolute values at mid-life."""
    drawn = np.delete(z, LENGTH, axis=1).reshape(len(z), -1)
    return np.concatenate([drawn, np.abs(z[:, 0] + 0.5 * z[:, TIME])[:, EVEN]], axis=1)


@dataclass(frozen=True)
class Surface:
    """The regression of one game and length. `effect` of features, in deviations of the residuals."""

    effect: np.ndarray
    explained: float  # share of the variance of left-out rows; a row is a candidate in one game at one length


def normal_scores(values: np.ndarray) -> np.ndarray:
    """f64[C]: quantiles of the normal distribution in the order of the values, so that an agent that collapsed is no outlier."""
    return scipy.stats.norm.ppf((scipy.stats.rankdata(values) - 0.5) / len(values))


def fitted(cells: Mapping[tuple[str, int], Sequence[Returns]]) -> dict[tuple[str, int], Surface]:
    """The regressions of all games and lengths together. Scores are those within one set of lives; a diverged agent is worst."""
    drawn = [(cell, *lives) for cell, sets in cells.items() for lives in sets]
    x = np.concatenate([(rows := features(z)) - rows.mean(0) for _, z, _ in drawn])
    y = np.concatenate([normal_scores(np.where(np.isfinite(f), f, -np.inf)) for _, _, f in drawn])
    game = np.concatenate([[env] * len(f) for (env, _), _, f in drawn])
    length = np.concatenate([[n] * len(f) for (_, n), _, f in drawn])
    alike = [np.ones((len(y), len(y)), bool), game[:, None] == game, length[:, None] == length]
    alike.append(alike[1] & alike[2])
    products = x @ x.T

    def posterior(variances):
        shared = sum(v * same for v, same in zip(variances[:-1], alike, strict=True))
        inverse = np.linalg.inv(shared * products + variances[-1] * np.eye(len(y)))
        return shared, inverse, inverse @ y

    def unlikelihood(log_variances):
        variances = np.exp(log_variances)
        _, inverse, weights = posterior(variances)
        slope = (inverse - np.outer(weights, weights)) * products
        gradient = [(slope * same).sum() for same in alike] + [np.trace(inverse) - weights @ weights]
        return 0.5 * (y @ weights - np.linalg.slogdet(inverse)[1]), 0.5 * variances * gradient

    start = np.log([0.01, 0.01, 0.01, 0.01, 0.6])
    found = scipy.optimize.minimize(unlikelihood, start, jac=True, method="L-BFGS-B", options={"maxiter": 30})
    shared, inverse, weights = posterior(np.exp(found.x))
    left_out = weights / np.diag(inverse)  # errors of the predictions of rows from all others
    surfaces = {}
    for env, n in cells:
        mine = (game == env) & (length == n)
        effect = (shared[mine][0] * weights) @ x
        noise = left_out[mine].std()
        surfaces[env, n] = Surface(effect / noise, 1.0 - float((left_out[mine] ** 2).sum() / (y[mine] ** 2).sum()))
    return surfaces


def better(surface: Surface, rows: np.ndarray, steps: int) -> float:
    """The predicted probability that a seed under these numbers f64[7, 16] returns more than one of PPO."""
    gain = features(at_length(rows, steps)[None])[0] @ surface.effect
    return float(scipy.stats.norm.cdf(gain / np.sqrt(2.0)))


def at_length(rows: np.ndarray, steps: int) -> np.ndarray:
    """f64[7, 16]: the numbers in lives of this length, with log10 N in the constants."""
    found = rows.copy()
    found[0] += rows[LENGTH] * (np.log10(steps) - 5.5)
    found[LENGTH] = 0.0
    return found


def unpack(family: Family, x: np.ndarray) -> np.ndarray:
    """f64[7, 16]: the numbers of a family, by rows of `INPUTS`."""
    rows = np.zeros((len(INPUTS), len(NAMES)))
    rows[np.ix_(family.moving, family.numbers)] = x.reshape(len(family.moving), len(family.numbers))
    return rows


def seen(place: Path) -> np.ndarray:
    """f64[S, 7]: inputs in a life of PPO in each game, evenly over n/N; that of log10 N is 0. From disk if it is there."""
    path = place / "inputs-of-ppo.json"
    if not path.exists():
        envs = dict.fromkeys(env for lives in SETS.values() for cell in lives.cells for env in cell.envs)
        write_text(path, json.dumps({env: inputs_of_ppo(env) for env in envs}, indent=1) + "\n")
    return np.concatenate([np.asarray(x, np.float64) for x in json.loads(path.read_text()).values()])


def inputs_of_ppo(env: str, steps: int = 2**18) -> list[list[float]]:
    """[MOMENTS, 7]: what an objective reads at (k + 1/2) / MOMENTS of one life."""
    family = SoftClipConfig(time_aware=True, sees_statistics=True, schedules=True)
    problem = problem_of(family, (env,), steps)
    setting = problem.settings[0]
    key = problem.key("start", 0)
    task = setting.tasks(key)
    updates = setting.agent.config.num_updates(steps)

    @jax.jit
    def at(key, number):
        state, _ = setting.agent.train(problem.template, task, key, num_updates=number)
        return setting.agent.progress(task, state)

    rows = []
    for k in range(MOMENTS):
        progress = at(key, jnp.int32(round(updates * (k + 0.5) / MOMENTS)))
        x = inputs.values(progress, time_aware=True, sees_statistics=True)
        rows.append([0.0 if i == LENGTH else round(float(v), 4) for i, v in enumerate(x)])
    return rows


def distance(rows: np.ndarray) -> float:
    """The squared distance from PPO in deviations of the draws."""
    units = np.ones(len(INPUTS))
    units[STATISTICS] = SIGMA / STATISTICS_SIGMA
    return float(((units[:, None] * rows) ** 2).sum())


def room(rows: np.ndarray, seen: np.ndarray) -> float:
    """The mean squared distance of the numbers from PPO's, over inputs f64[S, 7]."""
    return float(((seen @ rows) ** 2).sum(axis=1).mean())


def read_off(family: Family, surfaces: Mapping[tuple[str, int], Surface], seen: np.ndarray) -> np.ndarray:
    """The rows f64[7, 16] of the family that maximise the mean probability near PPO, in units of SIGMA."""
    surfaces = {cell: s for cell, s in surfaces.items() if family.covers(cell[1])}
    lengths = sorted({steps for _, steps in surfaces})
    size = len(family.numbers) * len(family.moving)

    def loss(x):
        rows = unpack(family, x)
        return -np.mean([better(s, rows, steps) for (_, steps), s in surfaces.items()])

    def left(x):
        rows = unpack(family, x)
        found = [at_length(rows, steps) for steps in lengths]
        return np.array([*(RADIUS**2 - room(x, seen) for x in found), *(REACH**2 - distance(x) for x in found)])

    rng = np.random.default_rng(0)
    tries = [
        scipy.optimize.minimize(
            loss,
            0.1 * rng.normal(size=size),
            method="SLSQP",
            constraints={"type": "ineq", "fun": left},
            options={"maxiter": 200},
        )
        for _ in range(4)
    ]
    return unpack(family, min(tries, key=lambda found: found.fun).x)


def objective_of(family: Family, rows: np.ndarray, epsilon: float = 0.2) -> lo.ScheduledMirror:
    """The objective of rows f64[7, 16] in units of SIGMA, with the settings of MinAtar around it."""
    values = jnp.asarray(SIGMA * rows[family.rows], jnp.float32)
    sees = {"time_aware": family.time_aware, "sees_statistics": family.statistics}
    drift = lo.SoftClip.create(epsilon=epsilon, **sees)
    drift = drift.replace(numbers=values[:, :12].reshape(drift.numbers.shape))
    return MINATAR_SETUP.loss.on(lo.ScheduledMirror.create(drift, **sees).replace(numbers=values[:, 12:]))


def row_of(env: str, steps: int, surface: Surface, count: int) -> dict[str, Any]:
    drawn = [f"{'' if row == '1' else row + ' '}{name}" for row in np.delete(INPUTS, LENGTH) for name in NAMES]
    named = [*drawn, *(f"|{NAMES[j]}|" for j in EVEN)]
    return {
        "env": env,
        "total_steps": steps,
        "candidates": count,
        "explained": round(surface.explained, 3),
        "effects": {name: round(float(e), 3) for name, e in zip(named, surface.effect, strict=True) if e},
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", type=Path, default=ROOT / "benchmarks/searches", help="of cells and objectives")
    args = parser.parse_args(argv)
    measured = {name: lives.returns(args.place / f"surface-{name}") for name, lives in SETS.items()}
    inputs_seen = seen(args.place)
    report: dict[str, Any] = provenance() | {"radius": RADIUS, "reach": REACH, "sigma": SIGMA, "sets": {}}
    for names in [*((name,) for name in SETS), *([tuple(SETS)] if len(SETS) > 1 else [])]:
        label = "+".join(names)
        cells: dict[tuple[str, int], list[Returns]] = {}
        for name in names:
            for cell, lives in measured[name].items():
                cells.setdefault(cell, []).append(lives)
        surfaces = fitted(cells)
        found = report["sets"][label] = {"seeds": [SETS[name].seed for name in names], "families": {}}
        found["rows"] = [row_of(*cell, s, sum(len(f) for _, f in cells[cell])) for cell, s in surfaces.items()]
        place = args.place / f"surface-{label}"
        place.mkdir(parents=True, exist_ok=True)
        for family_name, family in FAMILIES.items():
            if not any(SETS[name].has(family) for name in names):
                continue
            rows = read_off(family, surfaces, inputs_seen)
            predicted = {f"{env}, {n:,}": round(better(s, rows, n), 3) for (env, n), s in surfaces.items()}
            lo.save(objective_of(family, rows), place / f"{family_name}.safetensors")
            found["families"][family_name] = {
                "predicted P(better than PPO)": predicted,
                "mean": (
                    mean := round(
                        float(np.mean([better(s, rows, n) for (_, n), s in surfaces.items() if family.covers(n)])), 3
                    )
                ),
                "numbers": {
                    name: [round(SIGMA * x, 3) for x in column[family.rows]]
                    for name, column in zip(NAMES, rows.T, strict=True)
                    if column.any()
                },
            }
            print(f"lives {label}, {family_name}: predicted P(better than PPO) {mean:.3f}", flush=True)
    write_text(ROOT / "benchmarks/results/surface.json", json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
