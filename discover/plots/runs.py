"""Figures of a run, into files."""

from __future__ import annotations

import warnings
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

from discover.agents.insight import insights
from discover.agents.objectives import resolve_objective
from discover.plots.curves import search_curve
from discover.plots.drifts import drift_landscape
from discover.plots.elites import elites
from discover.plots.lineage import descent
from discover.plots.rules import credit, targets
from discover.plots.schedules import schedules
from discover.plots.worlds import favourites, grid_world
from discover.runs.loop import last_state
from discover.runs.store import read_rows
from discover.searches.lineage import lineage_of
from discover.searches.map_elites import MapElitesConfig
from discover.searches.recipe import recipe_in
from envs import levels, make
from learned_objectives import DPO, LPG, Clip, Mirror, Objective, ScheduledMirror

LEVEL = 1  # of gridworld/medium, that an update rule is looked at in


def draw_run(run: Path, out: Path) -> list[Path]:
    """Figures of a run, written into `out`: its search, and a look into what it found. Returns their paths."""
    rows = read_rows(run / "metrics.jsonl")
    if not any(row.get("evaluation") for row in rows) or not (run / "objective.safetensors").exists():
        raise ValueError(f"{run} holds no run with an evaluated objective: give the directory of one.")
    out.mkdir(parents=True, exist_ok=True)
    objective = resolve_objective(run)
    figures = {"search.png": search_curve(rows)} | look_inside(objective) | _of_a_life(objective)
    try:
        figures |= _of_curriculum(run)
    except ValueError as error:  # the others do not need what is missing
        warnings.warn(f"The curriculum's favourites are left out: {error}", stacklevel=2)
    if any("population" in row for row in rows):
        figures["descent.png"] = descent(lineage_of(rows))
    if isinstance(recipe_in(run).search, MapElitesConfig):
        search, state = last_state(run)
        figures["elites.png"] = elites(state.search.archive, search.recipe.search, names=search.recipe.envs)
    for name, figure in figures.items():
        figure.savefig(out / name, dpi=150)
    return [out / name for name in figures]


def look_inside(objective: Objective) -> dict[str, Figure]:
    """Figures of what an objective does, by file name."""
    if isinstance(objective, Mirror):
        drifts = {"PPO": Clip(), "DPO": DPO(), "discovered": objective.drift}
        around = {"schedules.png": schedules(objective)} if isinstance(objective, ScheduledMirror) else {}
        return {"drift.png": drift_landscape(drifts, fractions=(0.0, 0.5, 1.0))} | around
    if isinstance(objective, LPG):
        return {"credit.png": credit(objective)}
    return {}


def _of_a_life(objective: Objective) -> dict[str, Figure]:
    """The targets of an update rule for an agent that is trained for this figure."""
    if not isinstance(objective, LPG):
        return {}
    env, level = make("gridworld/medium")[0], levels.sample(jax.random.key(LEVEL), "medium")
    return {"targets.png": targets(insights(objective, env, level))}


def _of_curriculum(run: Path) -> dict[str, Figure]:
    """The levels with the highest probability in a run's curriculum, for every environment whose levels can be drawn."""
    recipe = recipe_in(run)
    drawn = [e for e, name in enumerate(recipe.envs) if grid_world(make(name)[0]) is not None]
    if recipe.curriculum.kind != "plr" or not drawn:
        return {}
    search, state = last_state(run)
    found = {}
    for e in drawn:
        buffer = state.search.buffers[e]
        if (np.asarray(buffer.number) > 0).any():
            suffix = "" if len(recipe.envs) == 1 else f"-{recipe.envs[e].replace('/', '_')}"
            found[f"favourites{suffix}.png"] = favourites(search.settings[e].agent.env, recipe.curriculum, buffer)
    return found
