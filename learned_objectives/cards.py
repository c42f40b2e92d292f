"""Cards: what an objective is, how it was made, what it expects, where it was tested, where it loses.

A card is rendered from data: the record saved with an objective, whose key "card" holds what a person has to say of it (for
closed forms, the texts below), and tested.json, what `python -m benchmarks.returns` found. Nothing in it is measured here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from learned_objectives.core import Objective
from learned_objectives.drifts import Drift
from learned_objectives.library import CLOSED_FORMS, load, record
from learned_objectives.lpg import LPG
from learned_objectives.lpo import LPO
from learned_objectives.mirror import Mirror

TESTED = Path(__file__).with_name("tested.json")  # name -> comparison -> {score, rows, loses}
TEXTS = {
    "a2c": {
        "summary": "No drift: the plain policy gradient with generalised advantages. D = 0.",
        "reference": "Mnih et al. 2016, arXiv:1602.01783",
        "loses": "Several epochs over one rollout carry it too far from the policy that gathered it: use one gradient step.",
    },
    "ppo": {
        "summary": "PPO's clip as a drift: D = relu((r - clip(r, 1 - epsilon, 1 + epsilon)) A), epsilon = 0.2.",
        "reference": "Schulman et al. 2017, eq. 7, arXiv:1707.06347; as a drift, Kuba et al. 2022, section 4, arXiv:2201.02373",
    },
    "dpo": {
        "summary": (
            "A closed form read off a drift that was meta-learned on Brax: for A >= 0 the gain saturates and never turns back, "
            "for A < 0 the slope changes sign, which pushes a ratio that fell far back up. alpha = 2, beta = 0.6."
        ),
        "reference": "Lu et al. 2022, eq. 8, arXiv:2210.05639",
    },
    "mdpo": {
        "summary": (
            "Mirror descent policy optimisation: D = (r log r - r + 1) / t, whose expectation is KL(pi || pi_old); t falls "
            "from 1 to 0 over the life."
        ),
        "reference": "Tomar et al. 2020, eq. 9, arXiv:2005.09814",
    },
}


def card(name_or_path: str | os.PathLike) -> str:
    """The card of an objective, in Markdown: of a name that `load` knows, or of a file.

    Raises as `load` does.
    """
    name = os.fspath(name_or_path)
    objective = load(name)
    how = {"card": TEXTS[name]} if name in CLOSED_FORMS else record(name)
    said = _mapping(how, "card")
    tables, loses = [said.get("score"), _table(said.get("tested", ()))], [said.get("loses")]
    for comparison in _tested(name).values():
        tables += [comparison["score"], _table(comparison["rows"])]
        loses.append(comparison["loses"])
    parts = [
        f"# {Path(name).stem if name.endswith('.safetensors') else name}",
        said.get("summary", ""),
        f"Reference: {said['reference']}." if "reference" in said else "",
        _section("How it was made", _made(how)),
        _section("What it expects", _expects(objective)),
        _section("How to use it", f"```python\n{_use(objective, name)}\n```"),
        _section("Where it was tested", "\n\n".join(filter(None, tables))),
        _section("Where it loses", "\n\n".join(filter(None, loses))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _tested(name: str) -> Mapping[str, Mapping[str, Any]]:
    """What was measured of an objective that comes with the package."""
    return json.loads(TESTED.read_text()).get(name, {}) if TESTED.exists() else {}


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _made(how: Mapping[str, Any]) -> str:
    recipe = _mapping(how, "recipe")
    if not recipe:
        return ""
    search = {"evolution": "evolution", "metagrad": "meta-gradients"}.get(str(recipe.get("method")), "a search")
    steps, spent, seconds = recipe.get("total_steps"), how.get("env_steps"), how.get("wall_seconds")
    rows = [
        ("recipe", f"`{recipe.get('name')}`, by {search}, seed {how.get('seed')}"),
        ("trained on", ", ".join(map(str, recipe.get("envs", ())))),
        ("a life", f"{steps:,} environment steps" if steps else "as the worlds have it"),
        ("steps of the search", f"{how.get('generation')} of {how.get('generations')}"),
        ("environment steps in all", f"{spent:.3g}" if spent else ""),
        ("time of the search", f"{seconds / 60:.0f} minutes" if isinstance(seconds, int) else ""),
        ("return at each evaluation", _curve(_mapping(how, "evaluations"))),
        ("chosen", _mapping(how, "card").get("chosen", "the best evaluated mean of the search")),
        ("device", how.get("device")),
        ("made with", ", ".join(f"{k} {v}" for k, v in _mapping(how, "versions").items() if v)),
        ("commit", how.get("commit")),
    ]
    return "\n".join(f"- {name}: {value}" for name, value in rows if value)


def _mapping(how: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a record, in which anybody may have saved anything."""
    part = how.get(name)
    return part if isinstance(part, Mapping) else {}


def _curve(evaluations: Mapping[str, Mapping[str, Sequence[float | None]]]) -> str:
    """Mean return by step of the search, environments apart."""
    names = list(next(iter(evaluations.values()), {}))
    curves = []
    for name in names:
        means = []
        for step, row in evaluations.items():
            known = [r for r in row[name] if r is not None]
            means.append(f"{sum(known) / len(known):.3g} at {step}" if known else f"none at {step}")
        curves.append(f"{name} " + ", ".join(means))
    return "; ".join(curves)


def _expects(objective: Objective | Drift) -> str:
    if isinstance(objective, LPG):
        time = ", and `Progress` in environment steps" if objective.time_aware else ""
        return (
            f"Discrete actions, and an agent that predicts a distribution over {objective.predictions} symbols where others "
            f"predict a value{time}. Targets once per rollout, over whole rollouts in time order."
        )
    drift = objective.drift if isinstance(objective, Mirror) else objective
    if not isinstance(drift, Drift):
        return ""
    needs = ["Advantages normalised over each minibatch to mean 0 and standard deviation 1"]
    if drift.needs_progress:
        needs.append("`Progress(step, lifetime)` in environment steps")
    if isinstance(drift, LPO):
        needs.append(f"nothing else: its feature map, {drift.features}, is in the file")
    return "; ".join(needs) + "."


def _use(objective: Objective | Drift, name: str) -> str:
    name = json.dumps(name)  # a string of Python's as well, with double quotes
    if isinstance(objective, LPG):
        return f'import discover\n\ndiscover.train({name}, env="gridworld/dense", total_steps=320_000)'
    drift = objective.drift if isinstance(objective, Mirror) else objective
    if not isinstance(drift, Drift):
        return f"import discover\n\ndiscover.train({name})"
    progress = ", lo.Progress(step, lifetime)" if drift.needs_progress else ""
    return (
        f"import learned_objectives as lo\n\nobjective = lo.load({name})\n"
        f"policy_loss = -objective.surrogate(log_ratio, advantage{progress}).mean()"
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join(lines)
