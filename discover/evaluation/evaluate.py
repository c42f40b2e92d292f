"""Objectives x environments x budgets x seeds -> returns, and what may be said of them."""

from __future__ import annotations

import contextlib
import itertools
import json
import operator
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import learned_objectives as lo
from discover.agents.agent import Agent, AgentConfig
from discover.agents.arguments import require_counts, require_seed, require_settings, whole
from discover.agents.objectives import identity, require_objective, resolve_objective
from discover.agents.setups import LossConfig, setup_of, usual_setup
from discover.devices.modes import plain_jax
from discover.evaluation.train import as_json, make_directory, make_life, require_room, train
from discover.progress import reached
from discover.results.comparison import Comparison, Curve, Trial, count_of
from discover.results.statistics import iqm_interval
from discover.runs.record import made_with
from discover.runs.store import locked, write_text
from discover.settings import flatten
from envs import code_digest, name_of


class Cell(NamedTuple):
    """One objective in one trial."""

    curve: Curve
    made_with: dict[str, Any]  # versions, device and commit


Cells = dict[tuple[Trial, str], Cell]
Objectives = Sequence[str | os.PathLike] | Mapping[str, str | os.PathLike | lo.Objective]


@plain_jax()
def evaluate(
    objectives: Objectives,
    envs: Sequence[str],
    *,
    total_steps: int | Sequence[int] = 500_000,
    num_seeds: int = 10,
    seed: int = 0,
    num_evals: int = 20,
    chunk: int | None = None,
    devices: Sequence[Any] | None = None,
    agent: AgentConfig | None = None,
    loss: LossConfig | None = None,
    out: str | os.PathLike | None = None,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Train every objective in every environment, with the same agents, keys and settings for all.

    Args: as of `train`, but for
      objectives: names, files and directories of runs; or such, and objectives themselves, by names of your own.
      total_steps: one budget or several; a time-aware objective shows what it is worth at several.
      num_seeds: at least 2, for an interval; below 8 the table has a note that intervals are t-intervals.
      out: a directory for evaluation.json, which is written after every cell (one objective in one trial), and for figures.
        The same call continues where it stopped. A call with more objectives, environments or budgets adds them.

    An objective that an environment's actions do not fit is named in the table with the reason, and the others go on.
    Raises ValueError before anything is trained if a name, a size or a space does not fit, or if `out` holds results that were
    made with other settings; TypeError as `train` does.
    """
    if out is not None and (objects := [env for env in envs if not isinstance(env, str)]):
        raise ValueError(
            f"results in `out` are kept by the name of an environment, and {name_of(objects[0])!r} is an object, whose name says "
            "nothing to another process: register it (`envs.register(name, env)`) and give the name, or leave `out` out."
        )
    specs, envs, budgets = _asked(objectives, envs, total_steps)
    num_seeds, num_evals, seed = whole("num_seeds", num_seeds), whole("num_evals", num_evals), whole("seed", seed)
    require_counts(num_seeds=num_seeds, num_evals=num_evals, chunk=1 if chunk is None else chunk)
    require_seed(seed)
    require_settings(agent, loss)
    if num_seeds < 2:
        raise ValueError(
            "evaluate reports intervals, which need at least 2 seeds, and num_seeds is 1: see `train` for one."
        )
    loaded = {name: resolve_objective(spec) for name, spec in specs.items()}
    setups = {env: (agent or usual_setup(env).agent, loss or usual_setup(env).loss) for env in envs}
    misfits = _misfits(loaded, setups, budgets, num_seeds)
    plan = [
        (Trial(env, budget), name)
        for env in setups
        for budget in budgets
        for name in loaded
        if (name, env) not in misfits
    ]
    if not plan:
        raise ValueError(f"no objective fits any environment: {next(iter(misfits.values()))}")
    settings = {
        "num_seeds": num_seeds,
        "seed": seed,
        "num_evals": num_evals,
        "setups": {env: {"agent": vars(a), "loss": vars(b)} for env, (a, b) in setups.items()},
        "objectives": {name: identity(objective) for name, objective in loaded.items()},
        "environments": {env: digest for env in setups if (digest := code_digest(env)) is not None},
    }

    def train_cell(trial: Trial, name: str, before: int) -> Curve:
        given, knobs = setups[trial.env]
        parts = itertools.count(1)

        def advance(_: str) -> None:
            reached(before + next(parts) / num_evals, len(plan))

        sizes = {"total_steps": trial.total_steps, "num_seeds": num_seeds, "seed": seed, "num_evals": num_evals}
        result = train(
            loaded[name], trial.env, **sizes, chunk=chunk, devices=devices, agent=given, loss=knobs, progress=advance
        )
        return Curve(result.returns, result.env_steps)

    directory = None if out is None else make_directory(out)
    with contextlib.nullcontext() if directory is None else locked(directory):
        done = {} if directory is None else _resume(directory / "evaluation.json", settings, budgets)
        here = made_with()
        for before, (trial, name) in enumerate(plan):
            reached(before, len(plan))
            if (trial, name) not in done:
                done[trial, name] = Cell(train_cell(trial, name, before), here)
                if directory is not None:
                    _write(directory, done, misfits, settings)
            if progress is not None:
                progress(f"{trial}  {name}  IQM {iqm_interval(done[trial, name].curve.final)}")
        comparison = Comparison(_arranged({cell: done[cell].curve for cell in plan}), misfits)
        if directory is not None:
            _write(directory, done, misfits, settings, comparison)
            try:
                draw(directory, comparison)
            except OSError as error:  # the results are safe, and worth more than their figures
                (progress or warnings.warn)(f"The figures could not be written ({error.strerror}); the results were.")
    return comparison


def _asked(objectives, envs, total_steps):
    """({name: spec}, environments, budgets), each once."""
    if any(isinstance(given, str | os.PathLike) or not isinstance(given, Iterable) for given in (objectives, envs)):
        raise ValueError(
            "evaluate takes lists of objectives and of environments, and was given a single one without a list."
        )
    if not isinstance(objectives, Mapping):
        if any(isinstance(o, (lo.Objective, lo.Drift)) for o in objectives):
            raise ValueError("an objective itself needs a name to be listed by: give {'mine': objective}.")
        objectives = {os.fspath(require_objective(o)): o for o in objectives}
    budgets = total_steps if isinstance(total_steps, (tuple, list, np.ndarray)) else [total_steps]
    budgets = list(dict.fromkeys(whole("total_steps", n) for n in budgets))
    if not objectives or not envs or not budgets:
        raise ValueError("evaluate needs at least one objective, one environment and one budget.")
    return {str(name): spec for name, spec in objectives.items()}, list(dict.fromkeys(map(name_of, envs))), budgets


def _misfits(loaded, setups, budgets, num_seeds) -> dict[tuple[str, str], str]:
    """Which objectives do not fit where; raises for what fits none."""
    out = {}
    for env, (config, _) in setups.items():
        lives: dict[int, int] = {}  # updates -> budget
        for budget in budgets:
            learner, _, updates = make_life(env, config, budget)
            if updates in lives:
                raise ValueError(
                    f"budgets of {lives[updates]:,} and {budget:,} environment steps are the same life of "
                    f"{count_of(updates, 'update')} in {env}: leave one out."
                )
            lives[updates] = budget
        require_room(Agent.fit(learner.env, config, lo.Mirror()), num_seeds)  # what any objective needs
        for name, objective in loaded.items():
            try:
                Agent.fit(learner.env, config, objective)
            except ValueError as error:
                out[name, env] = str(error)
    return out


def _arranged(done: Mapping[tuple[Trial, str], Curve]) -> dict[Trial, dict[str, Curve]]:
    curves: dict[Trial, dict[str, Curve]] = {}
    for (trial, name), curve in done.items():
        curves.setdefault(trial, {})[name] = curve
    return curves


def read_cells(path: Path) -> tuple[dict[str, Any], Cells]:
    """(settings, cells) of an evaluation.json. Raises ValueError with a sentence if it is not whole."""
    try:
        report = json.loads(path.read_text())
        settings, cells = report["settings"], {}
        if not {"num_seeds", "seed", "num_evals", "setups", "objectives"} <= settings.keys():
            raise ValueError("a setting is missing")
        settings["setups"] = {env: asdict(setup_of(setup)) for env, setup in settings["setups"].items()}
        for cell in report["cells"]:
            trial, name, curve = _read_cell(cell, settings)
            if (trial, name) in cells:
                raise ValueError("a cell is there twice")
            cells[trial, name] = Cell(curve, cell.get("made_with") or report["made_with"])
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        raise ValueError(f"{path} is not a readable evaluation: choose another --out, or remove it.") from None
    return settings, cells


def _resume(path: Path, settings: Mapping[str, Any], budgets: Sequence[int]) -> Cells:
    """The cells that are there already, if they were got as these would be; ValueError with a sentence if not."""
    if not path.exists():
        return {}
    before, done = read_cells(path)
    mine, theirs = flatten(settings), flatten({name: before.get(name, {}) for name in settings})
    for name in sorted(mine.keys() & theirs.keys()):
        what, _, changed = name.partition(".")
        if mine[name] != theirs[name] and what in ("objectives", "environments"):
            raise ValueError(
                f"{path} holds results of another {changed}, which has changed since: choose another "
                "--out, or remove it."
            )
        if mine[name] != theirs[name]:
            raise ValueError(
                f"{path} holds results whose {name} was {theirs[name]}, and it is {mine[name]} now: choose another --out, or "
                f"the same {name.split('.')[0]}."
            )
    others = sorted({trial.total_steps for trial, _ in done} - set(budgets))
    if others:
        raise ValueError(
            f"{path} holds results of {others[0]:,} environment steps, and budgets are not mixed unasked: choose another "
            f"--out, or name {others[0]} among --total-steps."
        )
    return done


def _read_cell(cell: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[Trial, str, Curve]:
    """One cell of a results file; ValueError, KeyError or TypeError if it is not whole."""
    curve = Curve(np.asarray(cell["returns"], np.float32), np.asarray(cell["env_steps"], np.int64))
    whole = curve.returns.shape == (settings["num_seeds"], curve.env_steps.size) and curve.env_steps.ndim == 1
    known = cell["env"] in settings["setups"] and cell["objective"] in settings["objectives"]
    if not whole or not known or curve.env_steps.size == 0:
        raise ValueError("a cell is not whole")
    return Trial(cell["env"], operator.index(cell["total_steps"])), cell["objective"], curve


def _write(
    directory: Path, done: Cells, misfits, settings: Mapping[str, Any], comparison: Comparison | None = None
) -> None:
    """Every cell there is, what did not fit, and, once all is done, the statistics of what was asked for."""
    path = directory / "evaluation.json"
    before = json.loads(path.read_text()) if path.exists() else {"settings": {}, "misfits": []}
    merged = dict(settings)
    for name in ("setups", "objectives", "environments"):  # of what a call before this one was about
        merged[name] = before["settings"].get(name, {}) | settings[name]
    known = {(m["objective"], m["env"]): m["why"] for m in before["misfits"]} | misfits
    report = {
        "settings": merged,
        "misfits": [{"objective": name, "env": env, "why": why} for (name, env), why in known.items()],
        "cells": [
            {
                "env": trial.env,
                "total_steps": trial.total_steps,
                "objective": name,
                "env_steps": cell.curve.env_steps.tolist(),
                "returns": as_json(cell.curve.returns),
                "made_with": cell.made_with,
            }
            for (trial, name), cell in done.items()
        ],
        "statistics": None if comparison is None else comparison.statistics(),
    }
    write_text(path, json.dumps(report, allow_nan=False) + "\n")


def draw(directory: Path, comparison: Comparison) -> list[Path]:
    """Figures: learning curves of each trial, scores over all of them, returns over budgets. Returns their paths."""
    from discover import plots

    several = len({t.total_steps for t in comparison.curves}) > 1
    figures = {}
    for trial, curves in comparison.curves.items():
        name = re.sub("[/@:]", "_", trial.env) + (f"_{trial.total_steps}" if several else "")
        figures[name] = plots.learning_curves(curves, title=str(trial) if several else trial.env)
    if summary := comparison.summary():
        scored = count_of(len(comparison.common()), "trial")
        figures["scores"] = plots.intervals(summary, title=f"{scored} (one environment at one budget each)")
    if several:
        figures["budgets"] = plots.budgets(comparison)
    for name, figure in figures.items():
        figure.savefig(directory / f"{name}.png", dpi=150)
    return [directory / f"{name}.png" for name in figures]
