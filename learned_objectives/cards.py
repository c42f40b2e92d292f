"""Cards: what an objective is, how it was made, what it expects, where it was tested, where it loses.

A card is rendered from data: the record saved with an objective, whose key "card" holds what a person has to say of it (for
closed forms, the texts below), and tested.json, what benchmarks found. Nothing in it is measured here.
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
from learned_objectives.mirror import Mirror, ScheduledMirror
from learned_objectives.soft_clip import SoftClip

OWN = ("return", "this rule")  # columns of an objective's own results; its baseline's is the next
TESTED = Path(__file__).with_name("tested.json")  # name -> comparison -> {score, rows, loses}
TEXTS = {
    "a2c": {
        "summary": "No drift: the plain policy gradient with generalised advantages. D = 0.",
        "reference": "Mnih et al. 2016, arXiv:1602.01783",
        "loses": "Nothing limits how far several epochs over one rollout carry it: it is defined for one gradient step.",
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
    "ta_ppo": {
        "summary": (
            "A closed form read off `ta_lpo`: PPO with a clip of width 0.4 where A >= 0 and 2.4 e^(2/3 n/N) / N^(1/5) where "
            "A < 0, and with 1 - lambda = N^(1/5) / 150. n is the step and N the life, in environment steps."
        ),
        "reference": (
            "Jackson et al. 2024, arXiv:2402.05828 (time-aware objectives); Yu et al. 2025, arXiv:2503.14476 (a wider clip where "
            "A >= 0)"
        ),
    },
    "mdpo": {
        "summary": (
            "Mirror descent policy optimisation: D = (r log r - r + 1) / t, whose expectation is KL(pi || pi_old); t falls "
            "from 1 to 0 over the life."
        ),
        "reference": "Tomar et al. 2020, eq. 9, arXiv:2005.09814",
    },
}


CHOSEN = {"best": "the best evaluated mean of the search", "last": "the last evaluated mean of the search"}


def card(name_or_path: str | os.PathLike) -> str:
    """The card of an objective, in Markdown: of a name that `load` knows, or of a file.

    Raises as `load` does.
    """
    objective = load(name_or_path)
    name = os.fspath(name_or_path)
    how = {"card": TEXTS[name]} if name in CLOSED_FORMS else record(name)
    said = _mapping(how, "card")
    compared = [said, *({"score": c["score"], "tested": c["rows"]} for c in _tested(name).values())]
    compared = [c for c in compared if c.get("tested")]
    tables, loses = [], [said.get("loses")]
    for number, c in enumerate(compared, 1):
        tables += [f"Table {number}. {c.get('score', '')}".strip(), _table(c["tested"])]
        loses.append(_behind(c["tested"], number))
    parts = [
        f"# {Path(name).stem if name.endswith('.safetensors') else name}",
        said.get("summary", ""),
        f"Reference: {said['reference']}." if "reference" in said else "",
        _section("How it was made", _made(how)),
        _section("Its numbers", _numbers(objective)),
        _section("What it expects", _expects(objective, _mapping(_mapping(how, "recipe"), "agent"))),
        _section("How to use it", f"```python\n{_use(objective, name)}\n```"),
        _section("Where it was tested", "\n\n".join(filter(None, tables))),
        _section("Where it loses", "\n\n".join(filter(None, loses))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _tested(name: str) -> Mapping[str, Mapping[str, Any]]:
    """What was measured of an objective that comes with the package. A replication stands in place of what it repeats."""
    found = json.loads(TESTED.read_text()).get(name, {}) if TESTED.exists() else {}
    if "replication" not in found:
        return found
    return {"replication": found["replication"]} | {
        k: v for k, v in found.items() if k not in ("replication", "drifts")
    }


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _made(how: Mapping[str, Any]) -> str:
    recipe = _mapping(how, "recipe")
    if not recipe:
        return "\n".join(f"- {name}: {value}" for name, value in _mapping(how, "search").items())
    kind = recipe.get("method") or _mapping(recipe, "search").get("kind")  # `method` in records of version 0.1
    names = {
        "evolution": "evolution",
        "rolling": "evolution",
        "metagrad": "meta-gradients",
        "pbt": "population-based training",
        "map_elites": "MAP-Elites",
    }
    search = names.get(str(kind), "a search")
    steps, spent, seconds = recipe.get("total_steps"), how.get("env_steps"), how.get("wall_seconds")
    rows = [
        ("recipe", f"`{recipe.get('name')}`, by {search}, seed {how.get('seed')}"),
        ("trained on", ", ".join(map(str, recipe.get("envs", ())))),
        ("a life", f"{steps:,} environment steps" if steps else "as the worlds have it"),
        ("steps of the search", f"{how.get('generation')} of {how.get('generations')}"),
        ("environment steps in all", f"{spent:.3g}" if spent else ""),
        ("time of the search", f"{seconds / 60:.0f} minutes" if isinstance(seconds, int) else ""),
        ("return at each evaluation", _curve(_mapping(how, "evaluations"))),
        ("chosen", _mapping(how, "card").get("chosen", CHOSEN[recipe.get("exported", "best")])),
        ("device", how.get("device")),
        ("made with", ", ".join(f"{k} {v}" for k, v in _mapping(how, "versions").items() if v)),
        ("commit", how.get("commit")),
    ]
    return "\n".join(f"- {name}: {value}" for name, value in rows if value)


def _numbers(objective: Objective | Drift) -> str:
    """The formulas of an objective of few numbers."""
    found = objective.formulas() if isinstance(objective, (ScheduledMirror, SoftClip)) else {}
    return "\n".join(f"- {name}: `{text}`" for name, text in found.items())


def _mapping(how: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a record, in which any user may have saved anything."""
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


def _expects(objective: Objective | Drift, agent: Mapping[str, Any]) -> str:
    if isinstance(objective, LPG):
        return _expects_of_lpg(objective, agent)
    drift = objective.drift if isinstance(objective, Mirror) else objective
    if not isinstance(drift, Drift):
        return ""
    needs = ["Advantages normalised over each minibatch to mean 0 and standard deviation 1"]
    if isinstance(objective, ScheduledMirror):
        needs.append("entropy weight, value weight, lambda and value clip of `objective.settings(progress)`")
    if drift.needs_progress or (isinstance(objective, ScheduledMirror) and objective.needs_progress):
        needs.append("`Progress(step, lifetime)` in environment steps")
    if drift.needs_statistics or objective.needs_statistics:
        needs.append("`Statistics` of the agent's last update, in its `Progress`")
    if isinstance(drift, LPO):
        needs.append(f"nothing else: its feature map, {drift.features}, is in the file")
    return "; ".join(needs) + "."


def _expects_of_lpg(lpg: LPG, agent: Mapping[str, Any]) -> str:
    time = ", and `Progress` in environment steps" if lpg.time_aware else ""
    lines = [
        f"Discrete actions, and an agent that predicts a distribution over {lpg.predictions} symbols, as logits, where others "
        f"predict a value{time}.",
        "Targets once per rollout, over whole rollouts in time order. One gradient step per rollout: one epoch, one minibatch.",
    ]
    if agent:
        annealed = "annealed to zero" if agent.get("anneal") else "constant"
        lines.append(
            f"The settings of its search: `{agent.get('optimizer')}` at a learning rate of {agent.get('learning_rate')}, "
            f"{annealed}, epochs {agent.get('num_epochs')}, minibatches {agent.get('num_minibatches')}, rollouts of "
            f"{agent.get('num_envs')} x {agent.get('num_steps')}, gradient norm at most {agent.get('max_grad_norm')}, discount "
            f"{lpg.gamma}, prediction coefficient {lpg.prediction_coef}. Far from them it may not learn."
        )
    return " ".join(lines)


LPG_IN_AN_AGENT = """\
import jax
import learned_objectives as lo

rule = lo.load({name})

# Once per rollout, [T, B] in time order. `critic`, `next_critic`: {predictions} logits at the state and at its true successor.
rollout = lo.Rollout(obs, action, log_prob, critic, next_critic, reward, terminated, truncated)
progress = lo.Progress(step, lifetime)  # in environment steps
targets = rule.targets(rollout, progress)


def loss(params):  # `agent`, yours: log pi(a|s) and entropy f32[T, B], logits f32[T, B, {predictions}]
    outputs = lo.Outputs(*agent(params, rollout.obs, rollout.action))
    return rule.loss(outputs, rollout, targets, progress)[0]


gradient = jax.grad(loss)(params)  # one step along it, then the next rollout

# Or the agent of this project:
# discover.train({name}, env="gridworld/dense", total_steps=320_000)"""


def _use(objective: Objective | Drift, name: str) -> str:
    name = json.dumps(name)  # a string of Python's as well, with double quotes
    if isinstance(objective, LPG):
        return LPG_IN_AN_AGENT.format(name=name, predictions=objective.predictions)
    drift = objective.drift if isinstance(objective, Mirror) else objective
    if not isinstance(drift, Drift):
        return f"import discover\n\ndiscover.train({name})"
    needs_statistics = drift.needs_statistics or objective.needs_statistics
    statistics = ", lo.Statistics(kl, entropy, explained_variance, clipped)" if needs_statistics else ""
    progress = f", lo.Progress(step, lifetime{statistics})" if drift.needs_progress or statistics else ""
    lines = [
        "import learned_objectives as lo\n",
        f"objective = lo.load({name})",
        f"policy_loss = -objective.surrogate(log_ratio, advantage{progress}).mean()",
    ]
    if isinstance(objective, ScheduledMirror):
        lines += [
            f"settings = objective.settings({progress.removeprefix(', ') or 'lo.Progress(step, lifetime)'})",
            "loss = policy_loss + settings.value_coef * value_loss - settings.entropy_coef * entropy",
            "# settings.gae_lambda: lambda of the advantages; settings.value_clip: PPO2's limit of a value's change",
        ]
    return "\n".join(lines)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def _behind(rows: Sequence[Mapping[str, Any]], number: int) -> str:
    """In how many rows of a table, and in which, it returns less than what stands beside it."""
    names = list(rows[0])
    own = next((i for i, name in enumerate(names) if name in OWN), None)
    if own is None or own + 1 == len(names):
        return ""
    labels, baseline = names[:own], names[own + 1]
    behind = [row for row in rows if _number(row[names[own]]) < _number(row[baseline])]
    where = "; ".join(" at ".join(str(row[name]) for name in labels) + " steps" * ("steps" in labels) for row in behind)
    return f"Table {number}: behind {baseline}, by IQM, in {len(behind)} of {len(rows)} rows" + (
        f": {where}." if behind else "."
    )


def _number(cell: Any) -> float:
    """The value of a cell, "0.87 [0.57, 1.21]"."""
    return float(str(cell).split()[0])
