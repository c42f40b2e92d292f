"""Recipes that earlier versions wrote, as this version writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from discover.agents.config import migrated_agent

WINDOW = ("window", "lateness")  # of evolution in version 0.1


def migrated(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as this version writes it; one that needs no change as it is.

    Version 0.1 had `method`, `evolution` and `metagrad` where there is `search` now, and `start`, `epsilon`, `width` and `lpg`
    where there is `objective`.
    """
    new = dict(recipe)
    if "agent" in new:
        new["agent"] = migrated_agent(new["agent"])
    if not isinstance(new.get("objective", ""), str):
        return new
    parts = {name: new.pop(name, {}) for name in ("lpg", "evolution", "metagrad")}
    lpo = {name: new.pop(name) for name in ("start", "epsilon", "width") if name in new}
    new["search"] = _search(new.pop("method", "evolution"), parts)
    new["objective"] = _objective(new.get("objective", "lpo"), lpo, parts["lpg"])
    return new


def _search(method: str, parts: dict[str, Any]) -> dict[str, Any]:
    if method == "metagrad":
        return {"kind": "metagrad"} | parts["metagrad"]
    evolution = {name: value for name, value in parts["evolution"].items() if name not in WINDOW}
    window, weight = (parts["evolution"].get(name) for name in WINDOW)
    if window is None:
        return {"kind": "evolution"} | evolution
    return {"kind": "rolling"} | evolution | {"window": window, "late_window_weight": weight or 0.0}


def _objective(name: str, lpo: dict[str, Any], lpg: dict[str, Any]) -> dict[str, Any]:
    family = name.removeprefix("ta_")
    time_aware = {"time_aware": name.startswith("ta_")}
    if family == "lpo":
        return {"kind": "lpo"} | time_aware | lpo
    if family == "lpg":
        return {"kind": "lpg"} | time_aware | lpg
    return {"kind": "formula", "name": name} | {key: value for key, value in lpo.items() if key == "epsilon"}
