"""Objectives x environments x seeds -> returns, and what may be said of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from discover.agent import Agent, AgentConfig
from discover.setups import LossConfig, usual_setup
from discover.statistics import iqm_interval
from discover.train import (
    TrainResult,
    as_json,
    make_directory,
    make_life,
    refuse_overwriting,
    require_counts,
    resolve_objective,
    train,
)


class Comparison(NamedTuple):
    """Results by environment and objective, in the order they were asked for."""

    results: dict[str, dict[str, TrainResult]]  # environment -> objective -> result

    def final(self, env: str, objective: str) -> np.ndarray:
        """f32[S]: each seed's mean return over the last stretch of its life."""
        return self.results[env][objective].returns[:, -1]

    def table(self) -> str:
        """IQM of the final returns over seeds, with its 95% bootstrap interval."""
        objectives = list(next(iter(self.results.values())))
        rows = [["environment", *objectives]]
        for env in self.results:
            rows.append([env, *(str(iqm_interval(self.final(env, name))) for name in objectives)])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)

    def as_json(self) -> dict[str, Any]:
        return {
            env: {
                name: {"env_steps": result.env_steps.tolist(), "returns": as_json(result.returns)}
                for name, result in by_objective.items()
            }
            for env, by_objective in self.results.items()
        }


def evaluate(
    objectives: Sequence[str | os.PathLike],
    envs: Sequence[str],
    *,
    total_steps: int = 500_000,
    num_seeds: int = 10,
    seed: int = 0,
    agent: AgentConfig | None = None,
    loss: LossConfig | None = None,
    out: str | os.PathLike | None = None,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Train every objective in every environment, with the same agents, keys and settings for all.

    Args: as of `train`. `out` receives evaluation.json and a figure for each environment.
    Raises ValueError before anything is trained if a name, a size or a space does not fit.
    """
    if not objectives or not envs:
        raise ValueError("evaluate needs at least one objective and one environment.")
    require_counts(num_seeds=num_seeds)
    for env in envs:
        learner, *_ = make_life(env, agent or usual_setup(env).agent, total_steps)
        for objective in objectives:
            Agent.fit(learner.env, learner.config, resolve_objective(objective))
    directory = None if out is None else make_directory(out)
    if directory is not None:
        refuse_overwriting(directory / "evaluation.json")
    results: dict[str, dict[str, TrainResult]] = {}
    for env in envs:
        results[env] = {}
        for objective in objectives:
            result = train(
                objective,
                env,
                total_steps=total_steps,
                num_seeds=num_seeds,
                seed=seed,
                agent=agent,
                loss=loss,
            )
            results[env][os.fspath(objective)] = result
            if progress is not None:
                progress(f"{env}  {objective}  IQM {iqm_interval(result.returns[:, -1])}")
    comparison = Comparison(results)
    if directory is not None:
        write(directory, comparison)
    return comparison


def write(path: Path, comparison: Comparison) -> None:
    from discover import plots

    (path / "evaluation.json").write_text(json.dumps(comparison.as_json()) + "\n")
    for env, by_objective in comparison.results.items():
        name = env.replace("/", "_").replace("@", "_")
        plots.learning_curves(by_objective, title=env).savefig(path / f"{name}.png", dpi=150)
